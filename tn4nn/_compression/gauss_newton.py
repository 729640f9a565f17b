"""All cores of a fit at once: Gauss-Newton steps with the damping of Levenberg and Marquardt.

Least squares core by core hardly move where the cores of a solution have to change together (ill-conditioned fits:
factors of CP that are nearly collinear, smooth kernels on rings and grids). The squared error is that of a function
whose derivative by a core is the network without it, J: the gradient is J^H (network - W), and the steps solve (J^H J +
damping) p = J^H (W - network). J^H J is made block by block, by contractions of the network with itself that never form
W. It has (number of parameters)^2 entries, so this is for small networks (Tomasi and Bro 2006; Sorber, Van Barel and De
Lathauwer 2013, both for CP).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from .._base.arrays import Array
from .._graph.paths import legs_along
from .als import ENOUGH, Als, Contraction, primed

_STEPS = (10, 100)  # fewer are not worth the start, more gain little
_WORK = 1e10  # multiply-adds that all steps together may take
_SETTLED = 1e-4  # relative change of the squared error in a step below which nothing is expected any more
_DAMPING = 1e-6  # at the start, of the mean of the diagonal of J^H J
_LEAST, _MOST = 1e-12, 1e6  # damping at which singular systems are still solved, and no step is worth taking


def _one(leg: str) -> str:
    """The name of the identity over an open leg."""
    return ":one " + leg


def refined(als: Als, weights: dict[str, Array], memory: int) -> dict[str, Array]:
    """The cores that steps from given ones end at, or the given ones where the network is too large for steps, or
    `memory` (bytes) too small."""
    if als.network.num_params**3 > 3 * _WORK / _STEPS[0]:
        return weights
    weights, lost = als.sweep(weights)
    if lost < ENOUGH:
        return weights
    steps = GaussNewton(als)
    if als.bytes + steps.bytes > memory:
        return weights
    return als.sweep(steps.run(weights))[0]  # damped steps do not end at the best core of those around it


class GaussNewton:
    """Refines what least squares found.

    Args:
        als: the fit.
    """

    def __init__(self, als: Als) -> None:
        self.als = als
        self.cores = als.network.topology.cores
        shapes = als.network.shapes
        ends = list(itertools.accumulate((als.size(core.legs) for core in self.cores), initial=0))
        self.parts = [slice(a, b) for a, b in itertools.pairwise(ends)]
        self.params = ends[-1]
        self.shapes = [shapes[core.name] for core in self.cores]
        open_legs = (leg for leg in als.network.topology.modes if leg not in als.weighed)
        self.fixed = {_one(leg): np.eye(als.sizes[leg]) for leg in open_legs}
        pairs = itertools.combinations_with_replacement(range(len(self.cores)), 2)
        self.blocks = {(i, j): self._block(i, j) for i, j in pairs}

    def _block(self, row: int, column: int) -> Contraction:
        """J^H J of two cores: the conjugated network without the one, beside the network without the other."""
        kets = [core for i, core in enumerate(self.cores) if i != column]
        bras = [core for i, core in enumerate(self.cores) if i != row]
        tensors, names = self.als.beside(kets, bras)
        rows = self.als.bra(self.cores[row].legs)
        both = [leg for leg in self.cores[column].legs if leg in rows]  # open ones: J is zero off their diagonal
        tensors += [(leg, primed(leg)) for leg in both]
        columns = tuple(primed(leg) if leg in both else leg for leg in self.cores[column].legs)
        return self.als.contraction(tensors, [*names, *map(_one, both)], (*rows, *columns))

    @property
    def bytes(self) -> int:
        """An estimate of the most memory that a step takes."""
        intermediates = [legs for job in self.blocks.values() for legs in legs_along(job.tensors, job.output, job.path)]
        largest = max(3 * self.als.size(legs) for legs in intermediates)
        return self.als.fixed[":target"].itemsize * (3 * self.params**2 + largest)

    @property
    def affordable(self) -> int:
        """How many steps may be taken."""
        jobs = [*self.blocks.values(), *(update.right for update in self.als.updates)]
        step = sum(map(self.als.macs_of, jobs)) + self.params**3 // 3
        steps = int(min(_STEPS[1], _WORK // step))
        return steps if steps >= _STEPS[0] else 0

    # -- steps ------------------------------------------------------------------------------------------------

    def run(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Cores of an error that is at most that of the given ones."""
        x = np.concatenate([weights[core.name].ravel() for core in self.cores])
        damping, left = _DAMPING, self.affordable
        lost = self._lost(x)
        while left > 0 and lost > ENOUGH and not self.als.watch.over:
            arrays = self._arrays(x)
            gram = self._gram(arrays, x.dtype)
            first = self.parts[0]  # the network is linear in any one core
            target = np.concatenate([self._right(i, arrays) for i in range(len(self.cores))])  # J^H W
            gradient = target - gram[:, first] @ x[first]  # of the squared error, times -1/2
            scale, before = np.trace(gram).real / self.params, lost
            while left > 0 and damping < _MOST:
                left -= 1
                step = np.linalg.solve(gram + damping * scale * np.eye(self.params), gradient)
                expected = float(np.vdot(step, 2 * gradient - gram @ step).real) / self.als.scale
                after = self._lost(x + step)
                share = (lost - after) / expected if expected > 0 else 0.0
                # Nielsen's rule: less damping where the expected gain is reached, more where it is not.
                damping = max(_LEAST, damping * (max(1 / 3, 1 - (2 * share - 1) ** 3) if share > 0 else 2.0))
                if share > 0:
                    x, lost = x + step, after
                    break
            if before - lost <= _SETTLED * lost:
                break
        return self._weights(x)

    def _weights(self, x: Array) -> dict[str, Array]:
        parts = zip(self.cores, self.parts, self.shapes, strict=True)
        return {core.name: x[part].reshape(shape) for core, part, shape in parts}

    def _arrays(self, x: Array) -> dict[str, Array]:
        return {**self.fixed, **self.als.arrays(self._weights(x))}

    def _gram(self, arrays: Mapping[str, Array], dtype: np.dtype) -> Array:
        """J^H J."""
        gram = np.empty((self.params, self.params), dtype)
        for (i, j), block in self.blocks.items():
            row, column = self.parts[i], self.parts[j]
            gram[row, column] = self._matrix(i, j, block, arrays)
            gram[column, row] = gram[row, column].conj().T
        return gram

    def _matrix(self, i: int, j: int, block: Contraction, arrays: Mapping[str, Array]) -> Array:
        sides = [self.parts[k].stop - self.parts[k].start for k in (i, j)]
        return block.run(arrays).reshape(sides)

    def _right(self, i: int, arrays: Mapping[str, Array]) -> Array:
        """J^H W of a core."""
        update = self.als.updates[i]
        right = update.right.run(arrays).reshape([self.als.sizes[leg] for leg in update.order])
        return update.from_system(right).ravel()

    def _lost(self, x: Array) -> float:
        """The squared error, relative to the squared norm."""
        arrays, first = self._arrays(x), x[self.parts[0]]
        product = self._matrix(0, 0, self.blocks[0, 0], arrays) @ first
        return max(0.0, 1 + float(np.vdot(first, product - 2 * self._right(0, arrays)).real) / self.als.scale)
