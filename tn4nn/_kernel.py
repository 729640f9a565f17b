"""A native kernel for a stream: C that is written for its sizes, compiled once, and kept on disk.

A block of 8 or 16 rows lies with the rows innermost, so one vector instruction serves one number of all rows:
a permutation of legs is only another offset, and nothing is ever moved. The block passes through all operands
while it lies in the cache; the backward pass runs it forward again instead of keeping it. Without a C compiler
there is no kernel, and the layers run their plan in the framework's own operations.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._files import atomic_write, cache_folder
from ._stream import Pass, Stream

Floats = NDArray[np.float32]

_HEAD = """
#include <stdlib.h>
#include <string.h>
#define R {lanes}
#define IN {inputs}
#define OUT {outputs}
typedef float V __attribute__((vector_size(4 * R)));
typedef float U __attribute__((vector_size(4 * R), aligned(4)));
typedef int I __attribute__((vector_size(4 * R)));
#define AT(p, i) (*(V *)((p) + (size_t)(i) * R))

static inline __attribute__((always_inline)) void turn(V *v) {{
  I lane;
  for (int i = 0; i < R; i++) lane[i] = i;
  #pragma GCC unroll 4
  for (int s = 1; s < R; s *= 2) {{
    I up = (lane & s) != 0;
    I low = (up & (lane - s + R)) | (~up & lane);
    I high = (up & (lane + R)) | (~up & (lane + s));
    #pragma GCC unroll 16
    for (int i = 0; i < R; i++) if (!(i & s)) {{
      V a = v[i], b = v[i | s];
      v[i] = __builtin_shuffle(a, b, low);
      v[i | s] = __builtin_shuffle(a, b, high);
    }}
  }}
}}

static void enter(const float *x, long rows, int width, float *state) {{
  int i = 0;
  for (; i + R <= width; i += R) {{
    V v[R];
    for (int r = 0; r < R; r++) {{
      if (r < rows) v[r] = *(U *)(x + (size_t)r * width + i); else v[r] = (V){{0}};
    }}
    turn(v);
    for (int j = 0; j < R; j++) AT(state, i + j) = v[j];
  }}
  for (; i < width; i++)
    for (int r = 0; r < R; r++) state[(size_t)i * R + r] = r < rows ? x[(size_t)r * width + i] : 0.0f;
}}

static void leave(const float *state, long rows, int width, float *y) {{
  int i = 0;
  for (; i + R <= width; i += R) {{
    V v[R];
    for (int j = 0; j < R; j++) v[j] = AT(state, i + j);
    turn(v);
    for (int r = 0; r < R; r++) if (r < rows) *(U *)(y + (size_t)r * width + i) = v[r];
  }}
  for (; i < width; i++)
    for (int r = 0; r < rows; r++) y[(size_t)r * width + i] = state[(size_t)i * R + r];
}}

static void gather(const float *lanes, long count, float *to) {{
  for (long i = 0; i < count; i++) {{
    float sum = 0.0f;
    for (int r = 0; r < R; r++) sum += lanes[i * R + r];
    to[i] = sum;
  }}
}}

#define TILE(MT, NT) \\
  V acc[MT][NT]; \\
  for (int i = 0; i < MT; i++) for (int j = 0; j < NT; j++) acc[i][j] = (V){{0}}; \\
  for (int k = 0; k < K; k++) {{ \\
    const float *bk = b + (size_t)k * N + n; \\
    for (int i = 0; i < MT; i++) {{ \\
      V a = AT(from, ah + am[m + i] + ak[k]); \\
      for (int j = 0; j < NT; j++) acc[i][j] += a * bk[j]; \\
    }} \\
  }} \\
  for (int i = 0; i < MT; i++) for (int j = 0; j < NT; j++) AT(to, ch + cm[m + i] + cn[n + j]) = acc[i][j];

#define SLOPE(KT, NT) \\
  V acc[KT][NT]; \\
  for (int i = 0; i < KT; i++) for (int j = 0; j < NT; j++) acc[i][j] = AT(g, (h * K + k + i) * N + n + j); \\
  for (int m = m0; m < m1; m++) {{ \\
    for (int i = 0; i < KT; i++) {{ \\
      V a = AT(state, ah[h] + am[m] + ak[k + i]); \\
      for (int j = 0; j < NT; j++) acc[i][j] += a * AT(slope, ch[h] + cm[m] + cn[n + j]); \\
    }} \\
  }} \\
  for (int i = 0; i < KT; i++) for (int j = 0; j < NT; j++) AT(g, (h * K + k + i) * N + n + j) = acc[i][j];
"""

_CHUNK = 24 * 1024  # bytes of state and slope that one chunk of the operand's gradient works on


@functools.cache
def processor() -> str:
    """What the processor can do: a library that was compiled for another one may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(told)])


def lanes() -> int:
    """Rows of a block: 16 where the processor has registers of 512 bits, else 8."""
    return 16 if "avx512f" in processor() else 8


def _table(name: str, values: Sequence[int]) -> str:
    return f"static const int {name}[] = {{{', '.join(map(str, values))}}};"


def _tiles(rows: int, columns: int, registers: int) -> tuple[int, int]:
    """(rows, columns) of a register tile."""
    wide = min(columns, 8 if registers >= 16 else 6)
    return max(1, min(rows, registers // wide)), wide


def _product(name: str, sizes: tuple[int, int, int, int], registers: int) -> str:
    """A function to[h, m, n] = sum_k from[h, m, k] * b[h, k, n]; its tables are named after it."""
    h, m, k, n = sizes
    mt, nt = _tiles(m, n, registers)
    loops = []
    for m_low, m_high, m_tile in _ranges(m, mt):
        for n_low, n_high, n_tile in _ranges(n, nt):
            loops.append(
                f"    for (int m = {m_low}; m < {m_high}; m += {m_tile}) "
                f"for (int n = {n_low}; n < {n_high}; n += {n_tile}) {{ TILE({m_tile}, {n_tile}) }}"
            )
    body = "\n".join(loops)
    return f"""
static void {name}(const float *from, const float *operand, float *to) {{
  enum {{ K = {k}, N = {n} }};
  const int *am = {name}_am, *ak = {name}_ak, *cm = {name}_cm, *cn = {name}_cn;
  for (int h = 0; h < {h}; h++) {{
    const float *b = operand + (size_t)h * K * N;
    const int ah = {name}_ah[h], ch = {name}_ch[h];
{body}
  }}
}}"""


def _slope(name: str, sizes: tuple[int, int, int, int], width: int) -> str:
    """A function g[h, k, n] += sum_m state[h, m, k] * slope[h, m, n], still with a value for each row."""
    h, m, k, n = sizes
    chunk = max(1, _CHUNK // (4 * width * (k + n)))
    loops = []
    for k_low, k_high, k_tile in _ranges(k, 4):
        for n_low, n_high, n_tile in _ranges(n, 4):
            loops.append(
                f"      for (int k = {k_low}; k < {k_high}; k += {k_tile}) "
                f"for (int n = {n_low}; n < {n_high}; n += {n_tile}) {{ SLOPE({k_tile}, {n_tile}) }}"
            )
    body = "\n".join(loops)
    return f"""
static void {name}_slope(const float *state, const float *slope, float *g) {{
  enum {{ K = {k}, N = {n} }};
  const int *ah = {name}_ah, *am = {name}_am, *ak = {name}_ak, *ch = {name}_ch, *cm = {name}_cm, *cn = {name}_cn;
  for (int h = 0; h < {h}; h++)
    for (int m0 = 0; m0 < {m}; m0 += {chunk}) {{
      const int m1 = m0 + {chunk} < {m} ? m0 + {chunk} : {m};
{body}
    }}
}}"""


def _ranges(size: int, tile: int) -> list[tuple[int, int, int]]:
    """(low, high, tile) of whole tiles, then of the rest."""
    whole = size - size % tile
    found = [(0, whole, tile)] if whole else []
    return [*found, (whole, size, size - whole)] if whole < size else found


def source(stream: Stream, width: int) -> str:
    """The C source for a stream, with blocks of `width` rows."""
    registers = 24 if width == 16 else 8
    parts = [_HEAD.format(lanes=width, inputs=stream.inputs, outputs=stream.outputs)]
    for i, p in enumerate(stream.passes):
        parts += _pass(f"p{i}", p, registers, width)
    starts = [0]
    for numbers in stream.states:
        starts.append(starts[-1] + numbers * width)
    largest = max(stream.states) * width
    count = len(stream.passes)
    slope_at = [starts[-1] + 2 * largest]
    for p in stream.passes:
        slope_at.append(slope_at[-1] + len(p.state_h) * len(p.state_k) * len(p.made_n) * width)
    parts.append(f"""
long scratch_size(void) {{ return {slope_at[-1]}; }}
void forward(long rows, const float *x, float *y, const float **operands, float *s) {{
  float *one = s, *two = s + {largest};
  for (long b = 0; b < rows; b += R) {{
    const long left = rows - b < R ? rows - b : R;
    enter(x + b * IN, left, IN, one);
""")
    spots = ["one", "two"]
    for i in range(count):
        parts.append(f"    p{i}({spots[i % 2]}, operands[{i}], {spots[(i + 1) % 2]});\n")
    parts.append(f"    leave({spots[count % 2]}, left, OUT, y + b * OUT);\n  }}\n}}\n")
    parts.append(f"""
void backward(long rows, const float *x, const float *gy, float *gx, const float **operands, const float **turned,
              float **slopes, float *s) {{
  float *one = s + {starts[-1]}, *two = one + {largest};
  memset(s + {slope_at[0]}, 0, sizeof(float) * {slope_at[-1] - slope_at[0]});
  for (long b = 0; b < rows; b += R) {{
    const long left = rows - b < R ? rows - b : R;
    enter(x + b * IN, left, IN, s);
""")
    for i in range(count - 1):
        parts.append(f"    p{i}(s + {starts[i]}, operands[{i}], s + {starts[i + 1]});\n")
    parts.append("    enter(gy + b * OUT, left, OUT, one);\n")
    for back, i in enumerate(reversed(range(count))):
        here, there = spots[back % 2], spots[(back + 1) % 2]
        parts.append(f"    p{i}_slope(s + {starts[i]}, {here}, s + {slope_at[i]});\n")
        step = f"p{i}_back({here}, turned[{i}], {there});"
        parts.append(f"    {step}\n" if i else f"    if (gx) {{ {step} leave({there}, left, IN, gx + b * IN); }}\n")
    parts.append("  }\n")
    for i in range(count):
        parts.append(f"  gather(s + {slope_at[i]}, {(slope_at[i + 1] - slope_at[i]) // width}, slopes[{i}]);\n")
    parts.append("}\n")
    return "".join(parts)


def _pass(name: str, p: Pass, registers: int, width: int) -> list[str]:
    h, m, k, n = (len(t) for t in (p.state_h, p.state_m, p.state_k, p.made_n))
    ahead = {"ah": p.state_h, "am": p.state_m, "ak": p.state_k, "ch": p.made_h, "cm": p.made_m, "cn": p.made_n}
    back = {"ah": p.made_h, "am": p.made_m, "ak": p.made_n, "ch": p.state_h, "cm": p.state_m, "cn": p.state_k}
    tables = [_table(f"{name}_{key}", values) for key, values in ahead.items()]
    tables += [_table(f"{name}_back_{key}", values) for key, values in back.items()]
    return [
        "\n".join(tables),
        _product(name, (h, m, k, n), registers),
        _product(f"{name}_back", (h, m, n, k), registers),
        _slope(name, (h, m, k, n), width),
    ]


class Kernel:
    """A compiled stream. Arrays are float32, contiguous, and given by address."""

    def __init__(self, stream: Stream, library: ctypes.CDLL, width: int) -> None:
        self.stream, self.width = stream, width
        self._library = library
        library.scratch_size.restype = ctypes.c_long
        self.scratch = int(library.scratch_size())

    def __reduce__(self) -> tuple[Any, ...]:  # a copy is the same kernel; another process finds its own
        return kernel, (self.stream,)

    def forward(self, rows: int, x: int, y: int, operands: Sequence[int]) -> None:
        """y = x W^T, all by address."""
        self._library.forward(
            ctypes.c_long(rows), _pointer(x), _pointer(y), _pointers(operands), _scratch(self.scratch)
        )

    def backward(
        self,
        rows: int,
        x: int,
        gy: int,
        gx: int,
        operands: Sequence[int],
        turned: Sequence[int],
        slopes: Sequence[int],
    ) -> None:
        """Fills gx (unless its address is 0) and the gradient of each operand.

        `turned` are the operands with their last two axes swapped, contiguous.
        """
        self._library.backward(
            ctypes.c_long(rows), _pointer(x), _pointer(gy), _pointer(gx), _pointers(operands), _pointers(turned),
            _pointers(slopes), _scratch(self.scratch),
        )  # fmt: skip


_held = threading.local()  # one scratch for each thread: fresh memory costs more than a small batch does


def _scratch(count: int) -> ctypes.c_void_p:
    raw: Floats | None = getattr(_held, "raw", None)
    if raw is None or raw.size < count + 16:
        raw = _held.raw = np.empty(count + 16, dtype=np.float32)
    return _pointer(raw.ctypes.data + -raw.ctypes.data % 64)


def _pointer(address: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(address or None)


def _pointers(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(addresses))(*addresses)


_built: dict[str, ctypes.CDLL | None] = {}  # by source: streams with the same steps share a library
_told = False


def kernel(stream: Stream) -> Kernel | None:
    """The kernel of a stream, compiled now or found on disk; None where that cannot be had."""
    width = lanes()
    text = source(stream, width)
    key = hashlib.sha256(f"{processor()}\n{width}\n{text}".encode()).hexdigest()[:24]
    if key not in _built:
        _built[key] = _build(stream, text, key, width)
    library = _built[key]
    return None if library is None else Kernel(stream, library, width)


def _build(stream: Stream, text: str, key: str, width: int) -> ctypes.CDLL | None:
    path = cache_folder() / "kernels" / f"{key}.so"
    try:
        library = _loaded(path)
        if library is None:
            atomic_write(path, _compiled(text))
            library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        _tell(f"no native kernel ({error}): layers run in the framework's own operations")
        return None
    if not _agrees(Kernel(stream, library, width)):
        _tell(f"the native kernel {path} failed its self-check: it is not used")
        return None
    return library


def _loaded(path: Path) -> ctypes.CDLL | None:
    """A library out of the cache, or None where there is none that loads."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def _compiled(text: str) -> bytes:
    compiler = next((found for name in ("gcc", "cc") if (found := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError("there is no C compiler: install gcc")
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        code.write_text(text)
        flags = ["-O3", "-march=native", "-funroll-loops", "-shared", "-fPIC", "-w"]
        if "avx512f" in processor():
            flags.append("-mprefer-vector-width=512")
        done = subprocess.run(
            [compiler, *flags, "-o", str(library), str(code)], capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{os.path.basename(compiler)} failed: {done.stderr[:300]}")
        return library.read_bytes()


def _tell(message: str) -> None:
    global _told  # once a process is enough
    if not _told:
        warnings.warn(message, stacklevel=3)
        _told = True


def _agrees(made: Kernel) -> bool:
    """Whether the kernel gives the numbers of plain numpy on a few rows, forward and backward."""
    rng = np.random.default_rng(0)
    stream, rows = made.stream, made.width + 3
    shapes = [(len(p.state_h), len(p.state_k), len(p.made_n)) for p in stream.passes]
    operands = [(rng.standard_normal(s) / np.sqrt(s[1])).astype(np.float32) for s in shapes]
    turned = [np.ascontiguousarray(o.swapaxes(1, 2)) for o in operands]
    x = rng.standard_normal((rows, stream.inputs)).astype(np.float32)
    gy = rng.standard_normal((rows, stream.outputs)).astype(np.float32)
    y, gx = np.empty_like(gy), np.empty_like(x)
    made.forward(rows, x.ctypes.data, y.ctypes.data, [o.ctypes.data for o in operands])
    slopes = [np.empty_like(o) for o in operands]
    straight, swapped, to = ([a.ctypes.data for a in arrays] for arrays in (operands, turned, slopes))
    made.backward(rows, x.ctypes.data, gy.ctypes.data, gx.ctypes.data, straight, swapped, to)
    states = [x.astype(np.float64)]
    for p, operand in zip(stream.passes, operands, strict=True):
        states.append(_numpy_pass(p, states[-1], operand))
    grads, g = [], gy.astype(np.float64)
    for p, operand, state in zip(stream.passes[::-1], operands[::-1], states[-2::-1], strict=True):
        picked, made_at = _grids(p)
        grads.append(np.einsum("rhmk,rhmn->hkn", state[:, picked], g[:, made_at]))
        g_state = np.zeros_like(state)
        g_state[:, picked] = np.einsum("rhmn,hkn->rhmk", g[:, made_at], operand)
        g = g_state
    pairs = [(y, states[-1]), (gx, g), *zip(slopes, grads[::-1], strict=True)]
    return all(float(np.abs(a - b).max()) <= 1e-4 * max(float(np.abs(b).max()), 1e-30) for a, b in pairs)


def _grids(p: Pass) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    h, m, k = (np.array(t) for t in (p.state_h, p.state_m, p.state_k))
    ch, cm, cn = (np.array(t) for t in (p.made_h, p.made_m, p.made_n))
    return (
        h[:, None, None] + m[None, :, None] + k[None, None, :],
        ch[:, None, None] + cm[None, :, None] + cn[None, None, :],
    )


def _numpy_pass(p: Pass, state: NDArray[np.float64], operand: Floats) -> NDArray[np.float64]:
    picked, made_at = _grids(p)
    made = np.zeros((len(state), made_at.size))
    made[:, made_at] = np.einsum("rhmk,hkn->rhmn", state[:, picked], operand)
    return made
