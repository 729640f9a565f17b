/* Contractions of tensors as matrix products, without permuting anything first.
 *
 * One call is c[h, m, n] (+)= sum_k a[h, m, k] * b[h, k, n]. Each of h, m, n, k is a group of legs, and a table holds
 * the offset of every value of a group in each array (as in TBLIS, Matthews, arXiv:1607.00291). The vectors lie along
 * n, or along h where it is contiguous in all arrays, or along k where it is contiguous in runs of whole vectors. b is
 * copied into panels where its vectors are not contiguous or where it is read often.
 * A group that counts rows has its rows outermost: fewer rows are a prefix of the same table.
 */
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <malloc.h>
#define aligned_alloc(alignment, size) _aligned_malloc(size, alignment)
#define free_aligned _aligned_free
#else
#include <sys/mman.h>
#define free_aligned free
#endif
#ifdef __AVX__
#include <immintrin.h>
#endif

typedef int64_t Int; /* everywhere: on Windows `long` has 32 bits */
#if SIZE == 8 /* bytes of a number */
typedef double REAL;
#elif SIZE == 4
typedef float REAL;
#endif
#if defined(__AVX512F__)
#define BYTES 64
#define MR 8
#elif defined(__AVX__)
#define BYTES 32
#define MR 4
#else
#define BYTES 16
#define MR 4
#endif
#define W (BYTES / SIZE)
#define NV 3
/* Passed by whoever compiles this, since the cost model knows them too:
   KC       of k at a time, where b or a is copied;
   FAR_K    vectors along k, and FAR_N columns of c, at a time where they are far apart;
   FETCHED  bytes of a batch tile beyond which nothing is fetched ahead: no cache would hold it;
   SHARE    rows, and
   LEAST    multiply-adds, below which a thread of its own does not pay. */
#if !defined(SIZE) || !defined(KC) || !defined(FAR_K) || !defined(FAR_N) || !defined(FETCHED) || !defined(SHARE) || \
    !defined(LEAST)
#error "SIZE, KC, FAR_K, FAR_N, FETCHED, SHARE and LEAST are passed with -D: see definitions() in variants.py"
#endif
#define MC 96      /* of m at a time, where a is copied */
#define NC 1536    /* of n at a time; a multiple of NV * W */
#define DEEP 64    /* of k in a tile, from where c is prefetched: it is in a cache where tiles are shorter */
#define LINE 64    /* bytes of a cache line */
typedef REAL V __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL T __attribute__((vector_size(BYTES)));
typedef REAL Four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* gcc and clang have the same vectors, but not the same words for two things: loops that are unrolled whole, and lanes
 * that change places. `of(i, s)` is what comes into lane i: lane `of` of a, or lane `of` - W of b. */
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define UNROLL(times) PRAGMA(clang loop unroll(full))
#else
#define UNROLL(times) PRAGMA(GCC unroll times)
#endif
#define LANES2(of, i, s) of(i, s), of(i + 1, s)
#define LANES4(of, i, s) LANES2(of, i, s), LANES2(of, i + 2, s)
#define LANES8(of, i, s) LANES4(of, i, s), LANES4(of, i + 4, s)
#define LANES16(of, i, s) LANES8(of, i, s), LANES8(of, i + 8, s)
#if BYTES / SIZE == 2
#define LANES LANES2
#elif BYTES / SIZE == 4
#define LANES LANES4
#elif BYTES / SIZE == 8
#define LANES LANES8
#else
#define LANES LANES16
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, of, s) __builtin_shufflevector(a, b, LANES(of, 0, s))
#elif SIZE == 8
typedef int64_t Lanes __attribute__((vector_size(BYTES)));
#define SHUFFLE(a, b, of, s) __builtin_shuffle(a, b, (Lanes){LANES(of, 0, s)})
#else
typedef int32_t Lanes __attribute__((vector_size(BYTES)));
#define SHUFFLE(a, b, of, s) __builtin_shuffle(a, b, (Lanes){LANES(of, 0, s)})
#endif

enum {
  B_VECTORS = 1, C_VECTORS = 2, ADDS = 4, B_COLUMNS = 8, A_LINES = 16, ACROSS = 32, DOTS = 64, C_FOURS = 128, A_RUNS = 256,
  A_COLUMNS = 512
};

/* What the next batch tile reads and writes of x, y and their gradients, prefetched a few lines with every tile of this
 * one: legs are read in an order that the processor does not foresee, and fetching one line after the other takes two to
 * three times as long as the memory needs. */
typedef struct { const char *at, *end; } Lines;
typedef struct {
  Lines lines[4];
  Int which, each, tiles; /* of the lines now; lines for a tile; tiles so far */
} Ahead;

static inline void fetch(Ahead *f) {
  f->tiles++;
  for (Int left = f->each; left > 0 && f->which < 4;) {
    Lines *l = f->lines + f->which;
    if (l->at < l->end) __builtin_prefetch(l->at, 0, 2), l->at += LINE, left--;
    else f->which++;
  }
}

typedef struct {
  Int h, m, n, k;       /* sizes */
  Int flags;
  const REAL *a, *b;
  REAL *c;
  const int *ah, *am, *ak, *bh, *bk, *bn, *ch, *cm, *cn;
  int add;              /* to what c holds */
  Ahead *ahead;
} Call;

/* A call in an encoded plan (see below): the size of a group that counts rows is that of one row (`rows`: 1 for m, 2 for
 * k, 3 for n); buffer and offset of a, b and c; tables by their distance from the start of the plan, in ints. */
typedef struct {
  Int h, m, n, k, rows, flags, at[6], tables[9];
} EncodedCall;

static int ramp[KC], beside[KC], panel[NV][KC], panel_n[NV * W];

__attribute__((constructor)) static void fill(void) {
  for (int n = 0; n < NV * W; n++) panel_n[n] = n;
  for (int k = 0; k < KC; k++) {
    ramp[k] = k;
    beside[k] = k * MR;
    for (int v = 0; v < NV; v++) panel[v][k] = k * (int)W * (v + 1);
  }
}

/* Exchanges the lines' numbers with the lowest bits of the lanes. This transposes W vectors; of fewer, a power of two, it
 * puts the numbers i, i + count, ... of all of them side by side in vector i. */
#define LOW(i, s) ((i) & (s) ? (i) - (s) + W : (i))
#define HIGH(i, s) ((i) & (s) ? (i) + W : (i) + (s))
static inline __attribute__((always_inline)) void interleave(T *v, const int count) {
  #define EXCHANGE(s) \
    UNROLL(16) \
    for (int i = 0; i < count; i++) if (!(i & (s)) && (s) < count) { \
      const T a = v[i], b = v[i | (s)]; \
      v[i] = SHUFFLE(a, b, LOW, s); \
      v[i | (s)] = SHUFFLE(a, b, HIGH, s); \
    }
  EXCHANGE(1)
  #if BYTES / SIZE > 2
  EXCHANGE(2)
  #endif
  #if BYTES / SIZE > 4
  EXCHANGE(4)
  #endif
  #if BYTES / SIZE > 8
  EXCHANGE(8)
  #endif
}

/* sum_k a[i][ak[k]] * b[v][bk[k]], in mr lines of nv vectors, to (or onto) c[i] + v * W. */
static inline __attribute__((always_inline)) void tile(
    const int mr, const int nv, Int count, const REAL *const *a, const int *ak, const REAL *const *b, const int *bk,
    REAL *const *c, const int *cn, int add) {
  V acc[MR][NV];
  UNROLL(8)
  for (int i = 0; i < mr; i++)
    UNROLL(3)
    for (int v = 0; v < nv; v++) acc[i][v] = (V){0};
  for (Int k = 0; k < count; k++) {
    const Int ka = ak[k], kb = bk[k];
    V bv[NV];
    UNROLL(3)
    for (int v = 0; v < nv; v++) bv[v] = *(const V *)(b[v] + kb);
    UNROLL(8)
    for (int i = 0; i < mr; i++) {
      const REAL x = a[i][ka];
      UNROLL(3)
      for (int v = 0; v < nv; v++) acc[i][v] += x * bv[v];
    }
  }
  if (add) {
    UNROLL(8)
    for (int i = 0; i < mr; i++)
      UNROLL(3)
      for (int v = 0; v < nv; v++) *(V *)(c[i] + cn[v * W]) += acc[i][v];
  } else {
    UNROLL(8)
    for (int i = 0; i < mr; i++)
      UNROLL(3)
      for (int v = 0; v < nv; v++) *(V *)(c[i] + cn[v * W]) = acc[i][v];
  }
}

/* Functions of their own: inlined into a larger one, the innermost loop has too few registers left for its addresses. */
#define TILE(nv, mr) \
  static __attribute__((noinline)) void tile##nv##_##mr( \
      Int count, const REAL *const *a, const int *ak, const REAL *const *b, const int *bk, REAL *const *c, const int *cn, \
      int add) { \
    tile(mr < MR ? mr : MR, nv, count, a, ak, b, bk, c, cn, add); \
  }
#define TILES(nv) \
  TILE(nv, 1) \
  TILE(nv, 2) \
  TILE(nv, 4) \
  TILE(nv, 8) \
  static void tile##nv(int mr, Int count, const REAL *const *a, const int *ak, const REAL *const *b, const int *bk, \
                       REAL *const *c, const int *cn, int add) { \
    if (MR == 8 && mr == 8) tile##nv##_8(count, a, ak, b, bk, c, cn, add); \
    else if (mr == 4) tile##nv##_4(count, a, ak, b, bk, c, cn, add); \
    else if (mr == 2) tile##nv##_2(count, a, ak, b, bk, c, cn, add); \
    else tile##nv##_1(count, a, ak, b, bk, c, cn, add); \
  }
TILES(1)
TILES(2)
TILES(3)

/* How many vectors the next panel takes, of `left` numbers: panels of much the same width. */
static inline Int width(Int left) {
  const Int vectors = (left + W - 1) / W, panels = (vectors + NV - 1) / NV;
  return (vectors + panels - 1) / panels;
}

/* Panels of nv vectors: to[panel][k][nv * W], zeros beyond n. */
static void pack(const Call *t, const REAL *b, const int *bk, const int *all_bn, Int n, Int count, REAL *to) {
  for (Int n0 = 0, nv; n0 < n; n0 += nv * W) {
    nv = width(n - n0);
    const Int step = nv * W, left = n - n0 < step ? n - n0 : step;
    if (left == step && t->flags & B_VECTORS) {
      const int *bn = all_bn + n0;
      for (Int k = 0; k < count; k++)
        for (Int v = 0; v < nv; v++) *(V *)(to + k * step + v * W) = *(const V *)(b + bk[k] + bn[v * W]);
      to += count * step;
      continue;
    }
    for (Int v = 0; v < nv; v++) {
      REAL *out = to + v * W;
      const int *bn = all_bn + n0 + v * W;
      const Int here = left - v * W < W ? left - v * W : W;
      if (here == W && t->flags & B_VECTORS) {
        const REAL *from = b + bn[0];
        for (Int k = 0; k < count; k++) *(V *)(out + k * step) = *(const V *)(from + bk[k]);
        continue;
      }
      Int k = 0;
      if (here == W && t->flags & B_COLUMNS)
        for (; k + W <= count; k += W) {
          T block[W];
          for (int i = 0; i < W; i++) block[i] = *(const V *)(b + bn[i] + bk[k]);
          interleave(block, W);
          for (int i = 0; i < W; i++) *(V *)(out + (k + i) * step) = block[i];
        }
      for (; k < count; k++) {
        REAL *line = out + k * step;
        const REAL *from = b + bk[k];
        for (Int i = 0; i < here; i++) line[i] = from[bn[i]];
        for (Int i = here; i < W; i++) line[i] = 0;
      }
    }
    to += count * step;
  }
}

/* Writes (or adds) four contiguous numbers. */
static inline __attribute__((always_inline)) void put(REAL *to, const REAL *from, int add) {
  Four four = *(const Four *)from;
  if (add) four += *(const Four *)to;
  *(Four *)to = four;
}

/* Writes lines of vectors where the numbers of `beside` lines are contiguous, run by run. */
static inline __attribute__((always_inline)) void scatter_runs(
    const int beside, int mr, Int n, const REAL *from, REAL *const *c, const int *cn, int add) {
  for (int i = 0; i < mr; i += beside, from += beside * NV * W)
    for (Int j0 = 0; j0 < n; j0 += W) {
      T v[MR];
      REAL interleaved[MR * W];
      UNROLL(8)
      for (int r = 0; r < beside; r++) v[r] = *(const V *)(from + r * NV * W + j0);
      interleave(v, beside);
      UNROLL(8)
      for (int r = 0; r < beside; r++) *(V *)(interleaved + r * W) = v[r];
      const Int most = n - j0 < W ? n - j0 : W;
      for (Int j = 0; j < most; j++) {
        const REAL *run = interleaved + j % beside * W + j / beside * beside;
        UNROLL(2)
        for (int r = 0; r < beside; r += 4) put(c[i] + cn[j0 + j] + r, run + r, add);
      }
    }
}

/* Writes lines of vectors to places that are not contiguous. */
static void scatter(int mr, Int n, const REAL *from, REAL *const *c, const int *cn, int fours, int add) {
  if (fours) { /* four numbers of a line are contiguous */
    for (int i = 0; i < mr; i++, from += NV * W)
      for (Int j = 0; j < n; j += 4) put(c[i] + cn[j], from + j, add);
    return;
  }
  int beside = mr; /* lines whose numbers are contiguous, from every line that is a multiple of it */
  for (int i = 1; i < mr; i++)
    while (i % beside && c[i] != c[i - 1] + 1) beside /= 2;
  if (beside == MR && MR <= W) scatter_runs(MR, mr, n, from, c, cn, add);
  else if (beside == 4 && W >= 4) scatter_runs(4, mr, n, from, c, cn, add);
  else
    for (int i = 0; i < mr; i++, from += NV * W) {
      if (add) for (Int j = 0; j < n; j++) c[i][cn[j]] += from[j];
      else for (Int j = 0; j < n; j++) c[i][cn[j]] = from[j];
    }
}

/* A copy of the lines of a: to[m][k], or to[m / MR][k][MR] where all lie side by side in runs of MR. */
static void lines(const Call *t, const REAL *a, const int *am, const int *ak, Int m, Int count, REAL *to) {
  if (t->flags & A_COLUMNS) {
    for (Int k = 0; k < count; k++, to += MR)
      for (Int i = 0; i < m; i += MR)
        for (int r = 0; r < MR; r += 4) *(Four *)(to + i * count + r) = *(const Four *)(a + am[i] + ak[k] + r);
    return;
  }
  for (Int i = 0; i < m; i++) {
    REAL *line = to + i * count;
    const REAL *from = a + am[i];
    if (t->flags & A_LINES) memcpy(line, from + ak[0], count * sizeof(REAL));
    else if (t->flags & A_RUNS) for (Int j = 0; j < count; j += W) *(V *)(line + j) = *(const V *)(from + ak[j]);
    else for (Int j = 0; j < count; j++) line[j] = from[ak[j]];
  }
}

/* m lines by n columns, k deep, at most NC columns. */
static void product(const Call *t, const REAL *a, const REAL *b, REAL *c, Int m, Int k, Int n, const int *bn,
                    const int *cn, REAL *scratch, int add) {
  const int small = m < 64 || k * n * (Int)sizeof(REAL) <= 1 << 15;
  const int direct_b = t->flags & B_VECTORS && n % W == 0 && small;
  const int direct_a = n <= 4 * NV * W || k < 16, columns = t->flags & A_COLUMNS;
  const Int kc = direct_a && direct_b ? k : KC;
  Int mc = MC;
  if (direct_a) {
    mc = (1 << 16) / (Int)(sizeof(REAL) * (kc < k ? kc : k));
    mc = mc < MC ? MC : mc / MR * MR;
  }
  REAL *packed_a = scratch, *packed_b = scratch + MC * KC;
  for (Int k0 = 0; k0 < k; k0 += kc) {
    const Int count = k - k0 < kc ? k - k0 : kc;
    const Int apart = columns ? 1 : count;
    const int *ak = direct_a ? t->ak + k0 : columns ? beside : ramp, adds = add || k0;
    if (!direct_b) pack(t, b, t->bk + k0, bn, n, count, packed_b);
    for (Int m0 = 0; m0 < m; m0 += mc) {
      const Int m1 = m - m0 < mc ? m : m0 + mc;
      if (!direct_a) lines(t, a, t->am + m0, t->ak + k0, m1 - m0, count, packed_a);
      const REAL *panels = packed_b;
      for (Int n0 = 0, nv; n0 < n; n0 += nv * W) {
        nv = width(n - n0);
        const Int left = n - n0 < nv * W ? n - n0 : nv * W;
        const int *bk = direct_b ? t->bk + k0 : panel[nv - 1], whole = left == nv * W && t->flags & C_VECTORS;
        const int *to_n = whole ? cn + n0 : panel_n;
        const REAL *bv[NV];
        for (Int v = 0; v < nv; v++) bv[v] = direct_b ? b + bn[n0 + v * W] : panels + v * W;
        panels += count * nv * W;
        int mr = MR;
        for (Int i = m0; i < m1; i += mr) {
          while (i + mr > m1) mr /= 2;
          fetch(t->ahead);
          const REAL *av[MR];
          REAL *to[MR], result[MR * NV * W];
          for (int r = 0; r < mr; r++) {
            __asm__(""); /* not in vectors: gathering eight indices takes longer than to read them */
            av[r] = direct_a ? a + t->am[i + r] : packed_a + (i - m0) * count + r * apart;
            to[r] = whole ? c + t->cm[i + r] : result + r * NV * W;
          }
          if (whole && count >= DEEP)
            for (int r = 0; r < mr; r++)
              for (Int v = 0; v < nv; v++) __builtin_prefetch(to[r] + to_n[v * W], 0, 2);
          if (nv == 3) tile3(mr, count, av, ak, bv, bk, to, to_n, adds && whole);
          else if (nv == 2) tile2(mr, count, av, ak, bv, bk, to, to_n, adds && whole);
          else tile1(mr, count, av, ak, bv, bk, to, to_n, adds && whole);
          if (whole) continue;
          for (int r = 0; r < mr; r++) to[r] = c + t->cm[i + r];
          scatter(mr, left, result, to, cn + n0, t->flags & C_FOURS, adds);
        }
      }
    }
  }
}

/* -- vectors along h, where it is contiguous in all arrays, or along k, in runs of whole vectors ------------------ */

#if defined(__AVX512F__)
typedef int Some;
#define SOME(n) ((1 << (n)) - 1)
static inline __attribute__((always_inline)) V some_of(const REAL *p, Some some) {
  return sizeof(REAL) == 4 ? (V)_mm512_maskz_loadu_ps((__mmask16)some, p) : (V)_mm512_maskz_loadu_pd((__mmask8)some, p);
}
#else
typedef Int Some;
#define SOME(n) (n)
static inline __attribute__((always_inline)) V some_of(const REAL *p, Some some) {
  V v = {0};
  for (Int i = 0; i < some; i++) v[i] = p[i];
  return v;
}
#endif

/* A tile has SIDE lines and columns of vectors; FAR_K vectors along k and FAR_N along n at a time, where they are
 * copied. */
enum { SIDE = 4 };
static int side[SIDE], far[FAR_K];

__attribute__((constructor)) static void fill_far(void) {
  for (int i = 0; i < SIDE; i++) side[i] = i * (int)W;
  for (int k = 0; k < FAR_K; k++) far[k] = k * SIDE * (int)W;
}

/* The sums of the numbers in each of W vectors, in the first of them. */
#define ITSELF(i, s) ((i) + ((i) & (s) ? W : 0))
#define PARTNER(i, s) (((i) ^ (s)) + ((i) & (s) ? W : 0))
static inline __attribute__((always_inline)) void fold(T *v) {
  #define ADD(s) \
    UNROLL(16) \
    for (int i = 0; i < W; i += 2 * (s)) \
      v[i] = SHUFFLE(v[i], v[i + (s)], ITSELF, s) + SHUFFLE(v[i], v[i + (s)], PARTNER, s);
  ADD(1)
  #if BYTES / SIZE > 2
  ADD(2)
  #endif
  #if BYTES / SIZE > 4
  ADD(4)
  #endif
  #if BYTES / SIZE > 8
  ADD(8)
  #endif
}

/* One tile of c: for `left` numbers of h, at most W, or (`dot`) for one, where the vectors lie along k. a and b have
 * `step` entries in the tables of k for each vector. */
static inline __attribute__((always_inline)) void tile_across(
    const int mt, const int nt, const int whole, const int dot, Int left, Int count, const REAL *a, const int *am,
    const int *ak, Int a_step, const REAL *b, const int *bk, Int b_step, const int *bn, REAL *c, const int *cm,
    const int *cn, int add) {
  const Some some = SOME(left);
  T acc[SIDE * SIDE];
  for (int i = 0; i < SIDE * SIDE; i++) acc[i] = (T){0};
  for (Int k = 0; k < count; k++, ak += a_step, bk += b_step) {
    V bv[SIDE];
    UNROLL(4)
    for (int j = 0; j < nt; j++) bv[j] = whole ? *(const V *)(b + *bk + bn[j]) : some_of(b + *bk + bn[j], some);
    UNROLL(4)
    for (int i = 0; i < mt; i++) {
      const V av = whole ? *(const V *)(a + am[i] + *ak) : some_of(a + am[i] + *ak, some);
      UNROLL(4)
      for (int j = 0; j < nt; j++) acc[i * nt + j] += av * bv[j];
    }
  }
  if (dot)
    for (int from = 0; from < mt * nt; from += W) fold(acc + from);
  for (int i = 0; i < mt; i++)
    for (int j = 0; j < nt; j++) {
      REAL *to = c + cm[i] + cn[j];
      const int at = i * nt + j;
      if (dot) *to = acc[at / W * W][at % W] + (add ? *to : 0);
      else if (whole && add) *(V *)to += acc[at];
      else if (whole) *(V *)to = acc[at];
      else for (Int l = 0; l < left; l++) to[l] = acc[at][l] + (add ? to[l] : 0);
    }
}

#define TILE_ACROSS(mt, nt, whole, dot) \
  static __attribute__((noinline)) void across##mt##nt##whole##dot( \
      Int left, Int count, const REAL *a, const int *am, const int *ak, Int a_step, const REAL *b, const int *bk, \
      Int b_step, const int *bn, REAL *c, const int *cm, const int *cn, int add) { \
    tile_across(mt, nt, whole, dot, left, count, a, am, ak, a_step, b, bk, b_step, bn, c, cm, cn, add); \
  }
#define TILES_ACROSS(mt, nt) TILE_ACROSS(mt, nt, 1, 1) TILE_ACROSS(mt, nt, 1, 0) TILE_ACROSS(mt, nt, 0, 0)
TILES_ACROSS(4, 4)
TILES_ACROSS(4, 2)
TILES_ACROSS(4, 1)
TILES_ACROSS(2, 4)
TILES_ACROSS(2, 2)
TILES_ACROSS(2, 1)
TILES_ACROSS(1, 4)
TILES_ACROSS(1, 2)
TILES_ACROSS(1, 1)

/* Copies vectors to to[k][SIDE], from lines that may lie a power of two apart and share a set of a cache. `loose`: of
 * numbers that are not contiguous. */
static void copy_vectors(const REAL *from, const int *of, const int *ok, Int step, int loose, Int lines, Int count,
                         REAL *to) {
  for (Int k = 0; k < count; k++, to += SIDE * W, ok += step)
    for (Int i = 0; i < lines; i++) {
      const REAL *line = from + of[i];
      if (loose) for (Int l = 0; l < W; l++) to[i * W + l] = line[ok[l]];
      else *(V *)(to + i * W) = *(const V *)(line + *ok);
    }
}

static void across(const Call *t, const REAL *a, const REAL *b, REAL *c, Int m, Int k, Int n, int dot, Int left,
                   REAL *scratch, int add) {
  REAL *packed_a = scratch, *packed_b = scratch + MC * KC;
  const int loose = dot && !(t->flags & A_RUNS);
  const int pack_a = loose || (left == W && n > 2 * SIDE), pack_b = left == W && m > 2 * SIDE;
  const Int step = dot ? W : 1, vectors = k / step;
  const Int kc = pack_a || pack_b ? FAR_K : vectors, nc = pack_b ? FAR_N : n;
  for (Int n0 = 0; n0 < n; n0 += nc) {
    const Int n1 = n - n0 < nc ? n : n0 + nc;
    for (Int k0 = 0; k0 < vectors; k0 += kc) {
      const Int count = vectors - k0 < kc ? vectors - k0 : kc;
      const int *ak = t->ak + k0 * step, *bk = t->bk + k0 * step;
      if (pack_b)
        for (Int j = n0; j < n1; j += SIDE)
          copy_vectors(b, t->bn + j, bk, step, 0, n1 - j < SIDE ? n1 - j : SIDE, count, packed_b + (j - n0) * count * W);
      int mt = SIDE;
      for (Int i = 0; i < m; i += mt) {
        while (i + mt > m) mt /= 2;
        if (pack_a) copy_vectors(a, t->am + i, ak, step, loose, mt, count, packed_a);
        int nt = SIDE;
        for (Int j = n0; j < n1; j += nt) {
          while (j + nt > n1) nt /= 2;
          fetch(t->ahead);
          const REAL *panel = packed_b + ((j - n0) / SIDE * SIDE * count + (j - n0) % SIDE) * W;
          #define ONE(mt, nt, whole, dot) \
            across##mt##nt##whole##dot(left, count, pack_a ? packed_a : a, pack_a ? side : t->am + i, \
                        pack_a ? far : ak, pack_a ? 1 : step, pack_b ? panel : b, pack_b ? far : bk, \
                        pack_b ? 1 : step, pack_b ? side : t->bn + j, c, t->cm + i, t->cn + j, add || k0)
          #define EACH(mt, nt) \
            do { if (dot) ONE(mt, nt, 1, 1); else if (left == W) ONE(mt, nt, 1, 0); else ONE(mt, nt, 0, 0); } while (0)
          switch (mt * 10 + nt) {
            case 44: EACH(4, 4); break;
            case 42: EACH(4, 2); break;
            case 41: EACH(4, 1); break;
            case 24: EACH(2, 4); break;
            case 22: EACH(2, 2); break;
            case 21: EACH(2, 1); break;
            case 14: EACH(1, 4); break;
            case 12: EACH(1, 2); break;
            default: EACH(1, 1);
          }
        }
      }
    }
  }
}

static void contract(const Call *t, REAL *scratch) {
  const Int m = t->m, k = t->k, n = t->n;
  const int add = t->add;
  if (t->flags & ACROSS) {
    for (Int h = 0; h < t->h; h += W)
      across(t, t->a + h, t->b + h, t->c + h, m, k, n, 0, t->h - h < W ? t->h - h : W, scratch, add);
    return;
  }
  for (Int h = 0; h < t->h; h++) {
    const REAL *ah = t->a + t->ah[h], *bh = t->b + t->bh[h];
    REAL *ch = t->c + t->ch[h];
    if (t->flags & DOTS) across(t, ah, bh, ch, m, k, n, 1, W, scratch, add);
    else
      for (Int n0 = 0; n0 < n; n0 += NC)
        product(t, ah, bh, ch, m, k, n - n0 < NC ? n - n0 : NC, t->bn + n0, t->cn + n0, scratch, add);
  }
}

/* -- an encoded plan -------------------------------------------------------------------------------------------- */

/* Calls that run once before, those of each batch tile forward and backward, and once after. */
enum { BEFORE, FORWARD, BACKWARD, AFTER, SECTIONS };

/* Everything that a pass needs, without an address in it: it may be copied, stored and loaded by another process.
 * After the head lie `steps` and `sums`, one number for each buffer; then the calls; then their tables. */
typedef struct {
  Int width;               /* numbers in the vectors that it was made for: W or a multiple of it */
  Int buffers, cores;      /* cores, x, y, prologue, states, dy, dx, dprologue, dstates, gradients of cores */
  Int block;               /* rows of a batch tile */
  Int first[SECTIONS + 1]; /* the calls of section s are first[s] .. first[s + 1] - 1 */
  Int prologue, states, prologue_grads, state_grads; /* numbers in the buffers that are not the caller's */
  Int saved_per_row; /* numbers of the states of a row, which the caller saves behind the prologue; 0: recomputed */
  Int saved_prologue; /* of `prologue`, where the caller saves it; 0: recomputed */
} Head;

/* Numbers from one row to the next in each buffer; 0 where it has no rows. */
static inline const Int *steps_of(const Head *p) { return (const Int *)(p + 1); }
/* Numbers in each buffer that batch tiles add to; 0 for the others. */
static inline const Int *sums_of(const Head *p) { return steps_of(p) + p->buffers; }
static inline const EncodedCall *calls_of(const Head *p) { return (const EncodedCall *)(sums_of(p) + p->buffers); }

/* -- threads ---------------------------------------------------------------------------------------------------- */

/* A host that has OpenMP threads of its own lends them: those of another pool would get no core while they spin, which
 * they do for milliseconds after every parallel operation of the host. It names the function that starts them, libgomp's
 * GOMP_parallel, and asks for them by a negative number of threads. All others share one pool.
 *
 * Nothing in the pool can raise, be interrupted or need an interpreter: a thread that cannot be started leaves its parts
 * to the others, and the caller works too, so that every call ends. Threads are started when a call first asks for them
 * and stay; a process that was forked starts its own. */

typedef void Job(void *data, Int part);
typedef void Parallel(void (*run)(void *), void *data, unsigned threads, unsigned flags);

static Parallel *host; /* gone in a child, which has none of the host's threads */

void lend(Parallel *parallel) { host = parallel; }

typedef struct { Int most; Parallel *parallel; } Threads;

static Threads threads_for(Int wanted) {
  return wanted < 0 ? (Threads){-wanted, host} : (Threads){wanted, 0};
}

/* The parts of one call. It lies on the caller's stack: the caller leaves only when all parts are done. */
typedef struct Team {
  Job *job;
  void *data;
  Int parts, next, done; /* under the lock; `done` is read without it while the caller spins */
  struct Team *behind;
} Team;

#define SPINS 2000 /* looks at what is to come before a thread sleeps: 20 us, or 130 where a pause is long */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, ends = PTHREAD_COND_INITIALIZER;
static Team *first_team; /* those with parts that nobody has taken */
static Int workers;

static inline void spin(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

/* Takes a part of a team and does it; the lock is held before and after. */
static void do_part(Team *t) {
  const Int part = t->next++;
  if (t->next == t->parts) {
    Team **at = &first_team;
    while (*at != t) at = &(*at)->behind;
    __atomic_store_n(at, t->behind, __ATOMIC_RELAXED); /* threads that spin look at the first without the lock */
  }
  pthread_mutex_unlock(&lock);
  t->job(t->data, part);
  pthread_mutex_lock(&lock);
  if (__atomic_add_fetch(&t->done, 1, __ATOMIC_RELEASE) == t->parts) pthread_cond_broadcast(&ends);
}

static void *serve(void *nothing) {
  pthread_mutex_lock(&lock);
  for (;;) {
    if (first_team) {
      do_part(first_team);
      continue;
    }
    pthread_mutex_unlock(&lock);
    for (Int i = 0; i < SPINS && !__atomic_load_n(&first_team, __ATOMIC_RELAXED); i++) spin();
    pthread_mutex_lock(&lock);
    while (!first_team) pthread_cond_wait(&work, &lock);
  }
  return nothing;
}

/* Starts threads until there are as many, or the system refuses. They leave signals to the threads of the host. */
static void start_workers(Int wanted) {
#ifndef _WIN32
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
  pthread_attr_t detached;
  if (!pthread_attr_init(&detached)) {
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t started; workers < wanted && !pthread_create(&started, &detached, serve, 0);) workers++;
    pthread_attr_destroy(&detached);
  }
#ifndef _WIN32
  pthread_sigmask(SIG_SETMASK, &before, 0);
#endif
}

/* What each of the host's threads does, however many come. */
static void take_parts(void *team) {
  Team *t = team;
  for (Int part; (part = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED)) < t->parts;) t->job(t->data, part);
}

/* Runs job(data, 0) .. job(data, parts - 1) in any order, side by side where it can; returns when all have ended. */
static void in_parallel(Int parts, Job *job, void *data, Threads threads) {
  Team t = {job, data, parts, 0, 0, 0};
  if (threads.parallel) { /* always as many: OpenMP ends those that a smaller team leaves over, and starts them anew */
    threads.parallel(take_parts, &t, threads.most, 0);
    return;
  }
  pthread_mutex_lock(&lock);
  if (workers < parts - 1) start_workers(parts - 1);
  Team **at = &first_team;
  while (*at) at = &(*at)->behind;
  __atomic_store_n(at, &t, __ATOMIC_RELAXED);
  pthread_cond_broadcast(&work);
  while (t.next < parts) do_part(&t);
  if (t.done < parts) { /* the others are at work: most of the time not for long */
    pthread_mutex_unlock(&lock);
    for (Int i = 0; i < SPINS && __atomic_load_n(&t.done, __ATOMIC_ACQUIRE) < parts; i++) spin();
    pthread_mutex_lock(&lock);
    while (t.done < parts) pthread_cond_wait(&ends, &lock);
  }
  pthread_mutex_unlock(&lock);
}

/* A child has none of its parent's threads, and whoever held the lock is not there to release it. */
static void forget_workers(void) {
  lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
  work = ends = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
  first_team = 0;
  workers = 0;
  host = 0;
}

#ifndef _WIN32 /* which does not fork */
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(0, 0, forget_workers); }
#endif

/* -- a workspace for each thread, which the next call overwrites: fresh memory costs more than a small batch does -- */

typedef struct { Int size; char *at; } Workspace;
static pthread_key_t workspaces;

static void free_workspace(void *workspace) {
  free_aligned(((Workspace *)workspace)->at);
  free(workspace);
}

__attribute__((constructor)) static void open_workspaces(void) { pthread_key_create(&workspaces, free_workspace); }
__attribute__((destructor)) static void close_workspaces(void) { pthread_key_delete(workspaces); }

static inline Int padded(Int numbers) { return (numbers * (Int)sizeof(REAL) + LINE - 1) / LINE * LINE / (Int)sizeof(REAL); }

/* Packed copies come first, then states, their gradients, what the prologue makes, its gradients, and as many numbers as
 * are wanted beside. 0: no memory. */
static REAL *workspace(const Head *p, Int beside) {
  const Int numbers = MC * KC + KC * NC + padded(p->states) + padded(p->state_grads) + padded(p->prologue) +
                       padded(p->prologue_grads) + beside;
  const Int size = numbers * (Int)sizeof(REAL);
  Workspace *found = pthread_getspecific(workspaces);
  if (!found) {
    found = calloc(1, sizeof(Workspace));
    if (!found || pthread_setspecific(workspaces, found)) {
      free(found);
      return 0;
    }
  }
  if (found->size < size) {
    free_aligned(found->at);
    found->at = aligned_alloc(LINE, size);
    found->size = found->at ? size : 0;
  }
  return (REAL *)found->at;
}

static inline REAL *states_in(REAL *workspace) { return workspace + MC * KC + KC * NC; }
static inline REAL *state_grads_in(const Head *p, REAL *workspace) { return states_in(workspace) + padded(p->states); }
static inline REAL *prologue_in(const Head *p, REAL *workspace) {
  return state_grads_in(p, workspace) + padded(p->state_grads);
}
static inline REAL *prologue_grads_in(const Head *p, REAL *workspace) {
  return prologue_in(p, workspace) + padded(p->prologue);
}
static inline REAL *beside_in(const Head *p, REAL *workspace) {
  return prologue_grads_in(p, workspace) + padded(p->prologue_grads);
}

/* -- one call, on several threads ------------------------------------------------------------------------------ */

#define MEETING 150000L /* multiply-adds in the time that handing parts out and waiting for them takes */
#define SUMMED 40L      /* the same for a number that a thread adds up beside the others */
#define MOST_SUMS (1L << 16) /* numbers of c for which k is shared out */

enum { DONE, NO_MEMORY };
typedef enum { H, M, N, K } Group;

static inline Int lesser(Int a, Int b) { return a < b ? a : b; }
static inline Int shares(Int size, Int each) { return (size + each - 1) / each; }

static Call call_of(const Head *p, const EncodedCall *f, Int rows, REAL **buffers, int add, Ahead *ahead) {
  const int *all = (const int *)p;
  const Int *at = f->tables, *in = f->at;
  return (Call){
    f->h, f->rows == 1 ? f->m * rows : f->m, f->rows == 3 ? f->n * rows : f->n, f->rows == 2 ? f->k * rows : f->k, f->flags,
    buffers[in[0]] + in[1], buffers[in[2]] + in[3], buffers[in[4]] + in[5], all + at[0], all + at[1], all + at[2],
    all + at[3], all + at[4], all + at[5], all + at[6], all + at[7], all + at[8], add, ahead};
}

static inline Int macs_of(const Call *t) { return t->h * t->m * t->n * t->k; }

/* How a call is shared out: along which group, and how many of its values a part takes, a multiple of what the kernel
 * takes at a time. c is shared out where it can be; else k, and the parts are added up in their order. */
typedef struct { Group group; Int size, each, parts; } Cut;

static Cut cut_of(const Call *t, Int threads) {
  const int across = t->flags & (ACROSS | DOTS);
  const Int sizes[] = {t->h, t->m, t->n, t->k};
  const Int units[] = {t->flags & ACROSS ? W : 1, MR, across ? SIDE : NV * W, 4 * W};
  const Int wanted = lesser(threads, macs_of(t) / LEAST);
  Cut best = {H, t->h, t->h, 1};
  if (wanted < 2) return best;
  double most = 0;
  for (Group g = H; g <= K; g++) {
    const Int each = shares(shares(sizes[g], units[g]), wanted) * units[g];
    const Int parts = shares(sizes[g], each);
    /* The group whose largest part is least; of several the longer one, since what is packed of the others is packed by
     * every part. */
    double worth = (double)sizes[g] / each + 1e-9 * sizes[g];
    if (g == K) worth = t->h * t->m * t->n > MOST_SUMS ? 0 : .8 * worth;
    if (parts > 1 && worth > most) most = worth, best = (Cut){g, sizes[g], each, parts};
  }
  return best;
}

static Call part_of(Call t, const Cut *cut, Int part) {
  const Int low = part * cut->each, size = lesser(cut->each, cut->size - low);
  switch (cut->group) {
    case H:
      if (t.flags & ACROSS) t.a += low, t.b += low, t.c += low;
      else t.ah += low, t.bh += low, t.ch += low;
      t.h = size;
      break;
    case M: t.am += low, t.cm += low, t.m = size; break;
    case N: t.bn += low, t.cn += low, t.n = size; break;
    default: t.ak += low, t.bk += low, t.k = size;
  }
  return t;
}

typedef struct {
  const Head *p;
  Call call;
  Cut cut;
  REAL *sums;
  int failed;
} Slices;

static void slice(void *data, Int part) {
  Slices *s = data;
  Ahead nothing = {0};
  Call t = part_of(s->call, &s->cut, part);
  REAL *mine = workspace(s->p, 0);
  if (!mine) {
    __atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
    return;
  }
  if (part) t.ahead = &nothing;
  if (part && s->sums) t.c = s->sums + (part - 1) * t.h * t.m * t.n, t.add = 0;
  contract(&t, mine);
}

/* to[i] += from[i] + from[i + step] + ..., always in this order. */
typedef struct { REAL *to; const REAL *from; Int length, step, others, parts; } Sum;

static void add_part(void *data, Int part) {
  const Sum *s = data;
  const Int each = shares(shares(s->length, LINE), s->parts) * LINE, low = part * each;
  const Int high = lesser(low + each, s->length);
  for (Int other = 0; other < s->others; other++) {
    const REAL *restrict from = s->from + other * s->step;
    REAL *restrict to = s->to;
    for (Int i = low; i < high; i++) to[i] += from[i];
  }
}

static void add_up(Sum s, Threads threads) {
  s.parts = lesser(threads.most, s.length * s.others * SUMMED / LEAST);
  if (s.parts > 1) in_parallel(s.parts, add_part, &s, threads);
  else s.parts = 1, add_part(&s, 0);
}

static int run_call(const Head *p, const Call *t, REAL *scratch, Threads threads) {
  if (threads.most > 1) {
    Slices s = {p, *t, cut_of(t, threads.most), 0, 0};
    if (s.cut.parts > 1) {
      const Int length = t->h * t->m * t->n;
      if (s.cut.group == K && !(s.sums = malloc((s.cut.parts - 1) * length * sizeof(REAL)))) return NO_MEMORY;
      in_parallel(s.cut.parts, slice, &s, threads);
      if (s.sums) add_up((Sum){t->c, s.sums, length, length, s.cut.parts - 1}, threads);
      free(s.sums);
      return s.failed ? NO_MEMORY : DONE;
    }
  }
  contract(t, scratch);
  return DONE;
}

/* -- the calls of a section ------------------------------------------------------------------------------------- */

static int run_once(const Head *p, int section, REAL **buffers, REAL *scratch, Threads threads) {
  Ahead nothing = {0};
  for (Int i = p->first[section]; i < p->first[section + 1]; i++) {
    const Call t = call_of(p, calls_of(p) + i, 1, buffers, 0, &nothing);
    if (run_call(p, &t, scratch, threads)) return NO_MEMORY;
  }
  return DONE;
}

/* What is to be prefetched of the rows that come next, with as many tiles as the last batch tile had. */
static Ahead ahead_of(const Head *p, REAL **buffers, Int row, Int rows, Int tiles) {
  const Int all[] = {p->cores, p->cores + 1, p->cores + 4, p->cores + 5};
  Ahead found = {0};
  Int bytes = 0;
  for (int i = 0; i < 4; i++) {
    const Int step = steps_of(p)[all[i]] * (Int)sizeof(REAL);
    const char *from = (const char *)buffers[all[i]];
    if (from) found.lines[i] = (Lines){from + row * step, from + (row + rows) * step}, bytes += rows * step;
  }
  if (tiles && bytes <= FETCHED) found.each = bytes / LINE / tiles + 1;
  return found;
}

/* rows of y += bias, while they are in a cache. */
static void add_bias(const Head *p, Int rows, REAL *restrict y, const REAL *restrict bias) {
  const Int step = steps_of(p)[p->cores + 1];
  for (Int row = 0; row < rows; row++, y += step)
    for (Int j = 0; j < step; j++) y[j] += bias[j];
}

static int run_tiles(const Head *p, int section, Int rows, REAL **buffers, const REAL *bias, REAL *scratch,
                     Threads threads) {
  REAL *here[p->buffers];
  Int tiles = 0;
  for (Int row = 0; row < rows; row += p->block) {
    const Int left = rows - row, now = left < p->block ? left : p->block;
    const Int next = left - now < p->block ? left - now : p->block;
    Ahead ahead = ahead_of(p, buffers, row + now, next, tiles);
    for (Int i = 0; i < p->buffers; i++) here[i] = buffers[i] + row * steps_of(p)[i];
    for (Int i = p->first[section]; i < p->first[section + 1]; i++) {
      const EncodedCall *f = calls_of(p) + i;
      const Call t = call_of(p, f, now, here, row && f->flags & ADDS, &ahead);
      if (run_call(p, &t, scratch, threads)) return NO_MEMORY;
    }
    if (bias) add_bias(p, now, here[p->cores + 1], bias);
    tiles = ahead.tiles;
  }
  return DONE;
}

/* -- calls ------------------------------------------------------------------------------------------------------ */

/* How the rows of a section are shared out. `parts` threads each take batch tiles of their own, and add up the gradients
 * that rows add to; with one part, all threads share every call of every tile. */
typedef struct { Int parts, each, length; } Rows; /* of a part: its rows, and the numbers that it adds to */

static Rows rows_of(const Head *p, int section, Int rows, REAL *const *given, Int threads) {
  Rows r = {1, rows, 0};
  if (threads < 2) return r;
  Int whole = 0, shared = 0; /* multiply-adds of all rows; in their time, what sharing every call takes */
  const Int tiles = shares(rows, p->block), tile = lesser(rows, p->block);
  for (Int i = p->first[section]; i < p->first[section + 1]; i++) {
    const EncodedCall *f = calls_of(p) + i;
    const Int row = f->h * f->m * f->n * f->k, most = lesser(threads, row * tile / LEAST);
    whole += row * rows;
    shared += most > 1 ? row * rows / most + tiles * MEETING : row * rows;
  }
  const Int unit = p->saved_per_row ? p->block : 1; /* saved states lie tile by tile */
  const Int most = lesser(lesser(threads, rows / SHARE), whole / LEAST);
  if (most < 2) return r;
  r.each = shares(shares(rows, unit), most) * unit;
  r.parts = shares(rows, r.each);
  for (Int i = 0; section == BACKWARD && i < p->buffers; i++)
    if (given[i] || i == p->cores + 6) r.length += padded(sums_of(p)[i]);
  const Int alone = whole * r.each / rows + MEETING + (r.parts - 1) * r.length * SUMMED / threads;
  return alone <= shared ? r : (Rows){1, rows, 0};
}

typedef struct {
  const Head *p;
  int section;
  Int rows;
  Rows cut;
  const REAL *bias;
  REAL *const *given, *sums; /* sums: memory for all parts but the first, where more than one add up */
  int failed;            /* whether a part found no memory */
} Share;

static int run_rows(const Share *s, Int part, REAL *mine, Threads threads) {
  const Head *p = s->p;
  REAL *buffers[p->buffers], *sums = s->sums + (part - 1) * s->cut.length;
  const Int low = part * s->cut.each, rows = lesser(s->cut.each, s->rows - low);
  for (Int i = 0; i < p->buffers; i++) buffers[i] = s->given[i] ? s->given[i] + low * steps_of(p)[i] : 0;
  buffers[p->cores + 3] = p->saved_per_row
                              ? s->given[p->cores + 2] + padded(p->prologue) + low * p->saved_per_row
                              : states_in(mine);
  buffers[p->cores + 7] = state_grads_in(p, mine);
  for (Int i = 0; part && i < p->buffers && s->cut.length; i++)
    if (sums_of(p)[i] && buffers[i]) buffers[i] = sums, sums += padded(sums_of(p)[i]);
  return run_tiles(p, s->section, rows, buffers, s->bias, mine, threads);
}

static void share(void *data, Int part) {
  Share *s = data;
  REAL *mine = workspace(s->p, 0);
  if (!mine || run_rows(s, part, mine, (Threads){1, 0})) __atomic_store_n(&s->failed, 1, __ATOMIC_RELAXED);
}

/* `mine` is the caller's workspace, with room for the sums of the other parts. */
static int spread(const Head *p, int section, Int rows, Rows cut, REAL *const *given, const REAL *bias, REAL *mine,
                  Threads threads) {
  Share s = {p, section, rows, cut, bias, given, beside_in(p, mine), 0};
  if (cut.parts == 1) return run_rows(&s, 0, mine, threads);
  in_parallel(cut.parts, share, &s, threads);
  if (s.failed) return NO_MEMORY;
  Int at = 0;
  for (Int i = 0; i < p->buffers && cut.length; i++)
    if (sums_of(p)[i] && given[i]) {
      add_up((Sum){given[i], s.sums + at, sums_of(p)[i], cut.length, cut.parts - 1}, threads);
      at += padded(sums_of(p)[i]);
    }
  return DONE;
}

/* Asks for large pages where a long array begins to be written: fresh memory that comes in small ones costs more than a
 * layer that reads and writes it once. NumPy does the same from this size on. */
static void large_pages(const Head *p, Int buffer, Int rows, REAL *at) {
#ifdef MADV_HUGEPAGE
  const size_t page = 4096, bytes = (size_t)(rows * steps_of(p)[buffer]) * sizeof(REAL);
  if (!at || bytes < 1 << 22) return;
  const size_t from = ((size_t)at + page - 1) / page * page, to = ((size_t)at + bytes) / page * page;
  madvise((void *)from, to - from, MADV_HUGEPAGE);
#endif
}

/* y = x W^T + bias, by at most as many threads as are wanted; a negative number stands for the host's. `given` holds
 * cores, x, y; memory for what the prologue makes, and for the states where the plan saves those, both for the backward
 * pass, or 0 where none follows; and the bias, a row as y's, or 0. Returns DONE, or NO_MEMORY: then y holds anything. */
int forward(const Int *encoded, Int rows, REAL *const *given, Int wanted) {
  const Head *p = (const Head *)encoded;
  const Threads threads = threads_for(wanted);
  REAL *buffers[p->buffers], *mine = workspace(p, 0);
  if (!mine) return NO_MEMORY;
  memset(buffers, 0, sizeof buffers);
  memcpy(buffers, given, (p->cores + 3) * sizeof *buffers);
  if (!buffers[p->cores + 2]) buffers[p->cores + 2] = prologue_in(p, mine);
  large_pages(p, p->cores + 1, rows, buffers[p->cores + 1]);
  if (run_once(p, BEFORE, buffers, mine, threads)) return NO_MEMORY;
  const Rows cut = rows_of(p, FORWARD, rows, buffers, threads.most);
  return spread(p, FORWARD, rows, cut, buffers, given[p->cores + 3], mine, threads);
}

/* Gradients: dx and those of the cores, where they are given and the plan has calls for them. What the prologue makes is
 * recomputed where it was not saved. Returns as `forward`. */
int backward(const Int *encoded, Int rows, REAL *const *given, Int wanted) {
  const Head *p = (const Head *)encoded;
  const Threads threads = threads_for(wanted);
  REAL *buffers[p->buffers];
  memcpy(buffers, given, sizeof buffers);
  const Rows cut = rows_of(p, BACKWARD, rows, buffers, threads.most);
  REAL *mine = workspace(p, (cut.parts - 1) * cut.length);
  if (!mine) return NO_MEMORY;
  buffers[p->cores + 6] = prologue_grads_in(p, mine);
  if (!buffers[p->cores + 2]) {
    buffers[p->cores + 2] = prologue_in(p, mine);
    if (run_once(p, BEFORE, buffers, mine, threads)) return NO_MEMORY;
  }
  large_pages(p, p->cores + 5, rows, buffers[p->cores + 5]);
  if (spread(p, BACKWARD, rows, cut, buffers, 0, mine, threads)) return NO_MEMORY;
  return run_once(p, AFTER, buffers, mine, threads);
}

Int vector_width(void) { return W; }
