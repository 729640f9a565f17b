/* Contractions of tensors as matrix products, without permuting anything first.
 *
 * One call is c[h, m, n] (+)= sum_k a[h, m, k] * b[h, k, n]. Each of h, m, n, k is a group of legs, and a table holds
 * the offset of every value of a group in each array (as in TBLIS, Matthews, arXiv:1607.00291). The vectors lie along
 * n, or along h where it is contiguous in all arrays, or along k where it is contiguous in runs of whole vectors. b is
 * copied into panels where its vectors are not contiguous or where it is read often.
 * A group that counts rows has its rows outermost: fewer rows are a prefix of the same table.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#ifndef REAL
#define REAL float
#define WHOLE int
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
#define W ((long)(BYTES / sizeof(REAL)))
#define NV 3
/* Passed by whoever compiles this, since the cost model knows them too:
   KC       of k at a time, where b or a is copied;
   FAR_K    vectors along k, and FAR_N columns of c, at a time where they are far apart;
   FETCHED  bytes of a batch tile beyond which nothing is fetched ahead: no cache would hold it. */
#if !defined(KC) || !defined(FAR_K) || !defined(FAR_N) || !defined(FETCHED)
#error "KC, FAR_K, FAR_N and FETCHED are passed with -D: see definitions() in native.py"
#endif
#define MC 96      /* of m at a time, where a is copied */
#define NC 1536    /* of n at a time; a multiple of NV * W */
#define DEEP 64    /* of k in a tile, from where c is prefetched: it is in a cache where tiles are shorter */
#define LINE 64    /* bytes of a cache line */
typedef REAL V __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL T __attribute__((vector_size(BYTES)));
typedef REAL Four __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef WHOLE I __attribute__((vector_size(BYTES)));

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
  long which, each, tiles; /* of the lines now; lines for a tile; tiles so far */
} Ahead;

static inline void fetch(Ahead *f) {
  f->tiles++;
  for (long left = f->each; left > 0 && f->which < 4;) {
    Lines *l = f->lines + f->which;
    if (l->at < l->end) __builtin_prefetch(l->at, 0, 2), l->at += LINE, left--;
    else f->which++;
  }
}

typedef struct {
  long h, m, n, k;       /* sizes; of a group that counts rows, the size per row */
  long rows;             /* which group counts rows: 1 for m, 2 for k, 3 for n */
  long flags;
  long at[6];            /* buffer and offset of a, b, c */
  const int *ah, *am, *ak, *bh, *bk, *bn, *ch, *cm, *cn;
  Ahead *ahead;
} Call;

/* A call in an encoded plan (see below): its tables by their distance from the start of the plan, in ints. */
typedef struct {
  long h, m, n, k, rows, flags, at[6], tables[9];
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
static inline __attribute__((always_inline)) void interleave(T *v, const int count) {
  I lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  #pragma GCC unroll 4
  for (int s = 1; s < count; s *= 2) {
    I up = (lane & s) != 0;
    I low = (up & (lane - s + W)) | (~up & lane);
    I high = (up & (lane + W)) | (~up & (lane + s));
    #pragma GCC unroll 16
    for (int i = 0; i < count; i++) if (!(i & s)) {
      T a = v[i], b = v[i | s];
      v[i] = __builtin_shuffle(a, b, low);
      v[i | s] = __builtin_shuffle(a, b, high);
    }
  }
}

/* sum_k a[i][ak[k]] * b[v][bk[k]], in mr lines of nv vectors, to (or onto) c[i] + v * W. */
static inline __attribute__((always_inline)) void tile(
    const int mr, const int nv, long count, const REAL *const *a, const int *ak, const REAL *const *b, const int *bk,
    REAL *const *c, const int *cn, int add) {
  V acc[MR][NV];
  #pragma GCC unroll 8
  for (int i = 0; i < mr; i++)
    #pragma GCC unroll 3
    for (int v = 0; v < nv; v++) acc[i][v] = (V){0};
  for (long k = 0; k < count; k++) {
    const long ka = ak[k], kb = bk[k];
    V bv[NV];
    #pragma GCC unroll 3
    for (int v = 0; v < nv; v++) bv[v] = *(const V *)(b[v] + kb);
    #pragma GCC unroll 8
    for (int i = 0; i < mr; i++) {
      const REAL x = a[i][ka];
      #pragma GCC unroll 3
      for (int v = 0; v < nv; v++) acc[i][v] += x * bv[v];
    }
  }
  if (add) {
    #pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
      #pragma GCC unroll 3
      for (int v = 0; v < nv; v++) *(V *)(c[i] + cn[v * W]) += acc[i][v];
  } else {
    #pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
      #pragma GCC unroll 3
      for (int v = 0; v < nv; v++) *(V *)(c[i] + cn[v * W]) = acc[i][v];
  }
}

#define TILES(nv) \
  static void tile##nv(int mr, long count, const REAL *const *a, const int *ak, const REAL *const *b, const int *bk, \
                       REAL *const *c, const int *cn, int add) { \
    if (MR == 8 && mr == 8) tile(8 < MR ? 8 : MR, nv, count, a, ak, b, bk, c, cn, add); \
    else if (mr == 4) tile(4, nv, count, a, ak, b, bk, c, cn, add); \
    else if (mr == 2) tile(2, nv, count, a, ak, b, bk, c, cn, add); \
    else tile(1, nv, count, a, ak, b, bk, c, cn, add); \
  }
TILES(1)
TILES(2)
TILES(3)

/* How many vectors the next panel takes, of `left` numbers: panels of much the same width. */
static inline long width(long left) {
  const long vectors = (left + W - 1) / W, panels = (vectors + NV - 1) / NV;
  return (vectors + panels - 1) / panels;
}

/* Panels of nv vectors: to[panel][k][nv * W], zeros beyond n. */
static void pack(const Call *t, const REAL *b, const int *bk, const int *all_bn, long n, long count, REAL *to) {
  for (long n0 = 0, nv; n0 < n; n0 += nv * W) {
    nv = width(n - n0);
    const long step = nv * W, left = n - n0 < step ? n - n0 : step;
    if (left == step && t->flags & B_VECTORS) {
      const int *bn = all_bn + n0;
      for (long k = 0; k < count; k++)
        for (long v = 0; v < nv; v++) *(V *)(to + k * step + v * W) = *(const V *)(b + bk[k] + bn[v * W]);
      to += count * step;
      continue;
    }
    for (long v = 0; v < nv; v++) {
      REAL *out = to + v * W;
      const int *bn = all_bn + n0 + v * W;
      const long here = left - v * W < W ? left - v * W : W;
      if (here == W && t->flags & B_VECTORS) {
        const REAL *from = b + bn[0];
        for (long k = 0; k < count; k++) *(V *)(out + k * step) = *(const V *)(from + bk[k]);
        continue;
      }
      long k = 0;
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
        for (long i = 0; i < here; i++) line[i] = from[bn[i]];
        for (long i = here; i < W; i++) line[i] = 0;
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
    const int beside, int mr, long n, const REAL *from, REAL *const *c, const int *cn, int add) {
  for (int i = 0; i < mr; i += beside, from += beside * NV * W)
    for (long j0 = 0; j0 < n; j0 += W) {
      T v[MR];
      REAL interleaved[MR * W];
      #pragma GCC unroll 8
      for (int r = 0; r < beside; r++) v[r] = *(const V *)(from + r * NV * W + j0);
      interleave(v, beside);
      #pragma GCC unroll 8
      for (int r = 0; r < beside; r++) *(V *)(interleaved + r * W) = v[r];
      const long most = n - j0 < W ? n - j0 : W;
      for (long j = 0; j < most; j++) {
        const REAL *run = interleaved + j % beside * W + j / beside * beside;
        #pragma GCC unroll 2
        for (int r = 0; r < beside; r += 4) put(c[i] + cn[j0 + j] + r, run + r, add);
      }
    }
}

/* Writes lines of vectors to places that are not contiguous. */
static void scatter(int mr, long n, const REAL *from, REAL *const *c, const int *cn, int fours, int add) {
  if (fours) { /* four numbers of a line are contiguous */
    for (int i = 0; i < mr; i++, from += NV * W)
      for (long j = 0; j < n; j += 4) put(c[i] + cn[j], from + j, add);
    return;
  }
  int beside = mr; /* lines whose numbers are contiguous, from every line that is a multiple of it */
  for (int i = 1; i < mr; i++)
    while (i % beside && c[i] != c[i - 1] + 1) beside /= 2;
  if (beside == MR && MR <= W) scatter_runs(MR, mr, n, from, c, cn, add);
  else if (beside == 4 && W >= 4) scatter_runs(4, mr, n, from, c, cn, add);
  else
    for (int i = 0; i < mr; i++, from += NV * W) {
      if (add) for (long j = 0; j < n; j++) c[i][cn[j]] += from[j];
      else for (long j = 0; j < n; j++) c[i][cn[j]] = from[j];
    }
}

/* A copy of the lines of a: to[m][k], or to[m / MR][k][MR] where all lie side by side in runs of MR. */
static void lines(const Call *t, const REAL *a, const int *am, const int *ak, long m, long count, REAL *to) {
  if (t->flags & A_COLUMNS) {
    for (long k = 0; k < count; k++, to += MR)
      for (long i = 0; i < m; i += MR)
        for (int r = 0; r < MR; r += 4) *(Four *)(to + i * count + r) = *(const Four *)(a + am[i] + ak[k] + r);
    return;
  }
  for (long i = 0; i < m; i++) {
    REAL *line = to + i * count;
    const REAL *from = a + am[i];
    if (t->flags & A_LINES) memcpy(line, from + ak[0], count * sizeof(REAL));
    else if (t->flags & A_RUNS) for (long j = 0; j < count; j += W) *(V *)(line + j) = *(const V *)(from + ak[j]);
    else for (long j = 0; j < count; j++) line[j] = from[ak[j]];
  }
}

/* m lines by n columns, k deep, at most NC columns. */
static void product(const Call *t, const REAL *a, const REAL *b, REAL *c, long m, long k, long n, const int *bn,
                    const int *cn, REAL *scratch, int add) {
  const int small = m < 64 || k * n * (long)sizeof(REAL) <= 1 << 15;
  const int direct_b = t->flags & B_VECTORS && n % W == 0 && small;
  const int direct_a = n <= 4 * NV * W || k < 16, columns = t->flags & A_COLUMNS;
  const long kc = direct_a && direct_b ? k : KC;
  long mc = MC;
  if (direct_a) {
    mc = (1 << 16) / (long)(sizeof(REAL) * (kc < k ? kc : k));
    mc = mc < MC ? MC : mc / MR * MR;
  }
  REAL *packed_a = scratch, *packed_b = scratch + MC * KC;
  for (long k0 = 0; k0 < k; k0 += kc) {
    const long count = k - k0 < kc ? k - k0 : kc;
    const long apart = columns ? 1 : count;
    const int *ak = direct_a ? t->ak + k0 : columns ? beside : ramp, adds = add || k0;
    if (!direct_b) pack(t, b, t->bk + k0, bn, n, count, packed_b);
    for (long m0 = 0; m0 < m; m0 += mc) {
      const long m1 = m - m0 < mc ? m : m0 + mc;
      if (!direct_a) lines(t, a, t->am + m0, t->ak + k0, m1 - m0, count, packed_a);
      const REAL *panels = packed_b;
      for (long n0 = 0, nv; n0 < n; n0 += nv * W) {
        nv = width(n - n0);
        const long left = n - n0 < nv * W ? n - n0 : nv * W;
        const int *bk = direct_b ? t->bk + k0 : panel[nv - 1], whole = left == nv * W && t->flags & C_VECTORS;
        const int *to_n = whole ? cn + n0 : panel_n;
        const REAL *bv[NV];
        for (long v = 0; v < nv; v++) bv[v] = direct_b ? b + bn[n0 + v * W] : panels + v * W;
        panels += count * nv * W;
        int mr = MR;
        for (long i = m0; i < m1; i += mr) {
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
              for (long v = 0; v < nv; v++) __builtin_prefetch(to[r] + to_n[v * W], 0, 2);
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
typedef long Some;
#define SOME(n) (n)
static inline __attribute__((always_inline)) V some_of(const REAL *p, Some some) {
  V v = {0};
  for (long i = 0; i < some; i++) v[i] = p[i];
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
static inline __attribute__((always_inline)) void fold(T *v) {
  I lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  #pragma GCC unroll 4
  for (int s = 1; s < W; s *= 2) {
    const I second = ((lane & s) != 0) & (int)W;
    #pragma GCC unroll 16
    for (int i = 0; i < W; i += 2 * s)
      v[i] = __builtin_shuffle(v[i], v[i + s], lane + second) + __builtin_shuffle(v[i], v[i + s], (lane ^ s) + second);
  }
}

/* One tile of c: for `left` numbers of h, at most W, or (`dot`) for one, where the vectors lie along k. a and b have
 * `step` entries in the tables of k for each vector. */
static inline __attribute__((always_inline)) void tile_across(
    const int mt, const int nt, const int whole, const int dot, long left, long count, const REAL *a, const int *am,
    const int *ak, long a_step, const REAL *b, const int *bk, long b_step, const int *bn, REAL *c, const int *cm,
    const int *cn, int add) {
  const Some some = SOME(left);
  T acc[SIDE * SIDE];
  for (int i = 0; i < SIDE * SIDE; i++) acc[i] = (T){0};
  for (long k = 0; k < count; k++, ak += a_step, bk += b_step) {
    V bv[SIDE];
    #pragma GCC unroll 4
    for (int j = 0; j < nt; j++) bv[j] = whole ? *(const V *)(b + *bk + bn[j]) : some_of(b + *bk + bn[j], some);
    #pragma GCC unroll 4
    for (int i = 0; i < mt; i++) {
      const V av = whole ? *(const V *)(a + am[i] + *ak) : some_of(a + am[i] + *ak, some);
      #pragma GCC unroll 4
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
      else for (long l = 0; l < left; l++) to[l] = acc[at][l] + (add ? to[l] : 0);
    }
}

/* Copies vectors to to[k][SIDE], from lines that may lie a power of two apart and share a set of a cache. `loose`: of
 * numbers that are not contiguous. */
static void copy_vectors(const REAL *from, const int *of, const int *ok, long step, int loose, long lines, long count,
                         REAL *to) {
  for (long k = 0; k < count; k++, to += SIDE * W, ok += step)
    for (long i = 0; i < lines; i++) {
      const REAL *line = from + of[i];
      if (loose) for (long l = 0; l < W; l++) to[i * W + l] = line[ok[l]];
      else *(V *)(to + i * W) = *(const V *)(line + *ok);
    }
}

static void across(const Call *t, const REAL *a, const REAL *b, REAL *c, long m, long k, long n, int dot, long left,
                   REAL *scratch, int add) {
  REAL *packed_a = scratch, *packed_b = scratch + MC * KC;
  const int loose = dot && !(t->flags & A_RUNS);
  const int pack_a = loose || (left == W && n > 2 * SIDE), pack_b = left == W && m > 2 * SIDE;
  const long step = dot ? W : 1, vectors = k / step;
  const long kc = pack_a || pack_b ? FAR_K : vectors, nc = pack_b ? FAR_N : n;
  for (long n0 = 0; n0 < n; n0 += nc) {
    const long n1 = n - n0 < nc ? n : n0 + nc;
    for (long k0 = 0; k0 < vectors; k0 += kc) {
      const long count = vectors - k0 < kc ? vectors - k0 : kc;
      const int *ak = t->ak + k0 * step, *bk = t->bk + k0 * step;
      if (pack_b)
        for (long j = n0; j < n1; j += SIDE)
          copy_vectors(b, t->bn + j, bk, step, 0, n1 - j < SIDE ? n1 - j : SIDE, count, packed_b + (j - n0) * count * W);
      int mt = SIDE;
      for (long i = 0; i < m; i += mt) {
        while (i + mt > m) mt /= 2;
        if (pack_a) copy_vectors(a, t->am + i, ak, step, loose, mt, count, packed_a);
        int nt = SIDE;
        for (long j = n0; j < n1; j += nt) {
          while (j + nt > n1) nt /= 2;
          fetch(t->ahead);
          const REAL *panel = packed_b + ((j - n0) / SIDE * SIDE * count + (j - n0) % SIDE) * W;
          #define ONE(mt, nt, whole, dot) \
            tile_across(mt, nt, whole, dot, left, count, pack_a ? packed_a : a, pack_a ? side : t->am + i, \
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

static void contract(const Call *t, long rows, REAL **buffers, REAL *scratch, int add) {
  const long m = t->rows == 1 ? t->m * rows : t->m, k = t->rows == 2 ? t->k * rows : t->k;
  const long n = t->rows == 3 ? t->n * rows : t->n;
  const REAL *a = buffers[t->at[0]] + t->at[1], *b = buffers[t->at[2]] + t->at[3];
  REAL *c = buffers[t->at[4]] + t->at[5];
  if (t->flags & ACROSS) {
    for (long h = 0; h < t->h; h += W)
      across(t, a + h, b + h, c + h, m, k, n, 0, t->h - h < W ? t->h - h : W, scratch, add);
    return;
  }
  for (long h = 0; h < t->h; h++) {
    const REAL *ah = a + t->ah[h], *bh = b + t->bh[h];
    REAL *ch = c + t->ch[h];
    if (t->flags & DOTS) across(t, ah, bh, ch, m, k, n, 1, W, scratch, add);
    else
      for (long n0 = 0; n0 < n; n0 += NC)
        product(t, ah, bh, ch, m, k, n - n0 < NC ? n - n0 : NC, t->bn + n0, t->cn + n0, scratch, add);
  }
}

/* -- an encoded plan -------------------------------------------------------------------------------------------- */

/* Calls that run once before, those of each batch tile forward and backward, and once after. */
enum { BEFORE, FORWARD, BACKWARD, AFTER, SECTIONS };

/* Everything that a pass needs, without an address in it: it may be copied, stored and loaded by another process.
 * After the head lie `steps` and `sums`, one number for each buffer; then the calls; then their tables. */
typedef struct {
  long width;               /* numbers in the vectors that it was made for: W or a multiple of it */
  long buffers, cores;      /* cores, x, y, prologue, states, dy, dx, dprologue, dstates, gradients of cores */
  long block;               /* rows of a batch tile */
  long first[SECTIONS + 1]; /* the calls of section s are first[s] .. first[s + 1] - 1 */
  long prologue, states, prologue_grads, state_grads; /* numbers in the buffers that are not the caller's */
  long saved_per_row; /* numbers of the states of a row, which the caller saves behind the prologue; 0: recomputed */
  long saved_prologue; /* of `prologue`, where the caller saves it; 0: recomputed */
} Head;

/* Numbers from one row to the next in each buffer; 0 where it has no rows. */
static inline const long *steps_of(const Head *p) { return (const long *)(p + 1); }
/* Numbers in each buffer that batch tiles add to; 0 for the others. */
static inline const long *sums_of(const Head *p) { return steps_of(p) + p->buffers; }
static inline const EncodedCall *calls_of(const Head *p) { return (const EncodedCall *)(sums_of(p) + p->buffers); }

static void run_call(const Head *p, const EncodedCall *f, long rows, REAL **buffers, REAL *scratch, int add,
                     Ahead *ahead) {
  const int *all = (const int *)p;
  const long *at = f->tables;
  Call t = {f->h, f->m, f->n, f->k, f->rows, f->flags, {0}, all + at[0], all + at[1], all + at[2], all + at[3],
            all + at[4], all + at[5], all + at[6], all + at[7], all + at[8], ahead};
  memcpy(t.at, f->at, sizeof t.at);
  contract(&t, rows, buffers, scratch, add);
}

static void run_once(const Head *p, int section, REAL **buffers, REAL *scratch) {
  Ahead nothing = {0};
  for (long i = p->first[section]; i < p->first[section + 1]; i++)
    run_call(p, calls_of(p) + i, 1, buffers, scratch, 0, &nothing);
}

/* What is to be prefetched of the rows that come next, with as many tiles as the last batch tile had. */
static Ahead ahead_of(const Head *p, REAL **buffers, long row, long rows, long tiles) {
  const long all[] = {p->cores, p->cores + 1, p->cores + 4, p->cores + 5};
  Ahead found = {0};
  long bytes = 0;
  for (int i = 0; i < 4; i++) {
    const long step = steps_of(p)[all[i]] * (long)sizeof(REAL);
    const char *from = (const char *)buffers[all[i]];
    if (from) found.lines[i] = (Lines){from + row * step, from + (row + rows) * step}, bytes += rows * step;
  }
  if (tiles && bytes <= FETCHED) found.each = bytes / LINE / tiles + 1;
  return found;
}

/* rows of y += bias, while they are in a cache. */
static void add_bias(const Head *p, long rows, REAL *restrict y, const REAL *restrict bias) {
  const long step = steps_of(p)[p->cores + 1];
  for (long row = 0; row < rows; row++, y += step)
    for (long j = 0; j < step; j++) y[j] += bias[j];
}

static void run_tiles(const Head *p, int section, long rows, REAL **buffers, const REAL *bias, REAL *scratch) {
  REAL *here[p->buffers];
  long tiles = 0;
  for (long row = 0; row < rows; row += p->block) {
    const long left = rows - row, now = left < p->block ? left : p->block;
    const long next = left - now < p->block ? left - now : p->block;
    Ahead ahead = ahead_of(p, buffers, row + now, next, tiles);
    for (long i = 0; i < p->buffers; i++) here[i] = buffers[i] + row * steps_of(p)[i];
    for (long i = p->first[section]; i < p->first[section + 1]; i++) {
      const EncodedCall *f = calls_of(p) + i;
      run_call(p, f, now, here, scratch, row && f->flags & ADDS, &ahead);
    }
    if (bias) add_bias(p, now, here[p->cores + 1], bias);
    tiles = ahead.tiles;
  }
}

/* -- a workspace for each thread, which the next call overwrites: fresh memory costs more than a small batch does -- */

typedef struct { long size; char *at; } Workspace;
static pthread_key_t workspaces;

static void free_workspace(void *workspace) {
  free(((Workspace *)workspace)->at);
  free(workspace);
}

__attribute__((constructor)) static void open_workspaces(void) { pthread_key_create(&workspaces, free_workspace); }
__attribute__((destructor)) static void close_workspaces(void) { pthread_key_delete(workspaces); }

static inline long padded(long numbers) { return (numbers * (long)sizeof(REAL) + LINE - 1) / LINE * LINE / (long)sizeof(REAL); }

/* Packed copies come first, then states, their gradients, what the prologue makes, and its gradients. */
static REAL *workspace(const Head *p) {
  const long numbers = MC * KC + KC * NC + padded(p->states) + padded(p->state_grads) + padded(p->prologue) +
                       padded(p->prologue_grads);
  const long size = numbers * (long)sizeof(REAL);
  Workspace *found = pthread_getspecific(workspaces);
  if (!found) {
    found = calloc(1, sizeof(Workspace));
    if (!found) abort();
    pthread_setspecific(workspaces, found);
  }
  if (found->size < size) {
    free(found->at);
    found->at = aligned_alloc(LINE, size);
    if (!found->at) abort();
    found->size = size;
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

/* -- calls ------------------------------------------------------------------------------------------------------ */

#define SHARE 32 /* rows below which a thread of its own does not pay */

/* Runs job(data, 0) .. job(data, parts - 1) in any order, side by side where it can. */
typedef void Job(void *data, long part);
typedef void Parallel(void *host, long parts, Job *job, void *data);

typedef struct {
  const Head *p;
  int section;
  long rows, parts;
  const REAL *bias;
  REAL **buffers, *sums; /* sums: memory for all parts but the first, where more than one add up */
  long length;         /* of the sums of one part */
} Share;

static void share(void *data, long part) {
  const Share *s = data;
  const Head *p = s->p;
  REAL *buffers[p->buffers], *mine = workspace(p), *sums = s->sums + (part - 1) * s->length;
  const long unit = p->saved_per_row ? p->block : 1; /* saved states lie tile by tile */
  const long each = (s->rows + s->parts * unit - 1) / (s->parts * unit) * unit, low = part * each;
  const long high = low + each < s->rows ? low + each : s->rows;
  if (low >= high) return;
  for (long i = 0; i < p->buffers; i++) buffers[i] = s->buffers[i] ? s->buffers[i] + low * steps_of(p)[i] : 0;
  buffers[p->cores + 3] = p->saved_per_row
                              ? s->buffers[p->cores + 2] + padded(p->prologue) + low * p->saved_per_row
                              : states_in(mine);
  buffers[p->cores + 7] = state_grads_in(p, mine);
  for (long i = 0; part && s->sums && i < p->buffers; i++)
    if (sums_of(p)[i] && buffers[i]) buffers[i] = sums, sums += padded(sums_of(p)[i]);
  run_tiles(p, s->section, high - low, buffers, s->bias, mine);
}

static void spread(const Head *p, int section, long rows, REAL **buffers, const REAL *bias, long threads,
                   Parallel *parallel, void *host) {
  Share s = {p, section, rows, 1, bias, buffers, 0, 0};
  const long most = rows / SHARE < threads ? rows / SHARE : threads;
  if (!parallel || most < 2) {
    share(&s, 0);
    return;
  }
  s.parts = most;
  if (section == BACKWARD) {
    for (long i = 0; i < p->buffers; i++)
      if (buffers[i]) s.length += padded(sums_of(p)[i]);
    s.sums = calloc((s.parts - 1) * s.length + 1, sizeof(REAL));
    if (!s.sums) abort();
  }
  parallel(host, s.parts, share, &s);
  if (!s.sums) return;
  const REAL *from = s.sums;
  for (long part = 1; part < s.parts; part++)
    for (long i = 0; i < p->buffers; i++)
      if (sums_of(p)[i] && buffers[i]) {
        for (long j = 0; j < sums_of(p)[i]; j++) buffers[i][j] += from[j];
        from += padded(sums_of(p)[i]);
      }
  free(s.sums);
}

/* Asks for large pages where a long array begins to be written: fresh memory that comes in small ones costs more than a
 * layer that reads and writes it once. NumPy does the same from this size on. */
static void large_pages(const Head *p, long buffer, long rows, REAL *at) {
#ifdef MADV_HUGEPAGE
  const size_t page = 4096, bytes = (size_t)(rows * steps_of(p)[buffer]) * sizeof(REAL);
  if (!at || bytes < 1 << 22) return;
  const size_t from = ((size_t)at + page - 1) / page * page, to = ((size_t)at + bytes) / page * page;
  madvise((void *)from, to - from, MADV_HUGEPAGE);
#endif
}

/* y = x W^T + bias. `given` holds cores, x, y; memory for what the prologue makes, and for the states where the plan saves
 * those, both for the backward pass, or 0 where none follows; and the bias, a row as y's, or 0. */
void forward(const long *encoded, long rows, REAL *const *given, long threads, Parallel *parallel, void *host) {
  const Head *p = (const Head *)encoded;
  REAL *buffers[p->buffers], *mine = workspace(p);
  memset(buffers, 0, sizeof buffers);
  memcpy(buffers, given, (p->cores + 3) * sizeof *buffers);
  if (!buffers[p->cores + 2]) buffers[p->cores + 2] = prologue_in(p, mine);
  large_pages(p, p->cores + 1, rows, buffers[p->cores + 1]);
  run_once(p, BEFORE, buffers, mine);
  spread(p, FORWARD, rows, buffers, given[p->cores + 3], threads, parallel, host);
}

/* Gradients: dx and those of the cores, where they are given and the plan has calls for them. What the prologue makes is
 * recomputed where it was not saved. */
void backward(const long *encoded, long rows, REAL *const *given, long threads, Parallel *parallel, void *host) {
  const Head *p = (const Head *)encoded;
  REAL *buffers[p->buffers], *mine = workspace(p);
  memcpy(buffers, given, sizeof buffers);
  buffers[p->cores + 6] = prologue_grads_in(p, mine);
  if (!buffers[p->cores + 2]) {
    buffers[p->cores + 2] = prologue_in(p, mine);
    run_once(p, BEFORE, buffers, mine);
  }
  large_pages(p, p->cores + 5, rows, buffers[p->cores + 5]);
  spread(p, BACKWARD, rows, buffers, 0, threads, parallel, host);
  run_once(p, AFTER, buffers, mine);
}

long vector_width(void) { return W; }
