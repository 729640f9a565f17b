"""Builds of the C kernel, for tests."""

import ctypes
import functools
import json
import runpy

from tn4nn._runtime import compiled, kernels, native
from tn4nn._runtime.variants import MANIFEST, source_digest

from . import TESTS


@functools.cache
def compiled_with(itemsize, *flags):
    """The kernel compiled for this processor with further flags, checked and ready to be called."""
    library = ctypes.CDLL(str(compiled.build(itemsize, flags)))
    assert native.agrees(itemsize, library)
    return library


def refresh():
    """Builds the kernel of a source tree again where the C has changed; an installed package is left alone."""
    root = TESTS.parent
    if not (root / "hatch_build.py").exists() or root not in kernels.AHEAD.parents:
        return
    try:
        if json.loads((kernels.AHEAD / MANIFEST).read_bytes())["source"] == source_digest():
            return
    except (OSError, ValueError, KeyError):
        pass
    runpy.run_path(str(root / "hatch_build.py"))["build"](kernels.AHEAD, None, portable=False)
