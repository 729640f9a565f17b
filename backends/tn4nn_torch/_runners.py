"""What a layer runs: its plans, and the native recipes and programs that they were lowered to, per batch class."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from tn4nn._model.layers import OnNetwork
from tn4nn._planning.layer import LayerPlanner
from tn4nn._planning.plan import Plan
from tn4nn._runtime.native import Native, native
from tn4nn._runtime.target import Target
from tn4nn.interop.engines import Engine, engine

from ._device import target
from ._ops import autocast_dtype
from ._steps import Steps

_UNSEEN = 64  # the batch of the plan that compiled and exported models run, where none was given


class Runners:
    """Plans of one layer on one device and in one dtype, each found when it is first asked for and lowered once.

    Two questions have two answers: what plain rows run by, and what must show its single operations (torch.compile,
    torch.func, traces), which are array programs.

    Args:
        planner: how the layer is planned.
        engine: another library that contracts.
    """

    def __init__(self, planner: LayerPlanner, engine: str | None) -> None:
        self.engine, self._planner = engine, planner
        self._plans: dict[int, Plan] = {}
        self._natives: dict[int, Native | None] = {}
        self._programs: dict[int, Steps | Engine] = {}
        self.compiled: Steps | Engine | None = None  # the program of compiled and exported models
        self.whole: Steps | Engine | None = None  # what makes W

    @property
    def target(self) -> Target:
        """Where it is planned for."""
        return self._planner.target

    def plan(self, rows: int) -> Plan:
        """The plan by which so many plain rows run, with their cost."""
        return self._planner.plan(rows)

    def class_plan(self, rows: int) -> Plan:
        """The same for their batch class, looked up without planning where it is known."""
        size = self._planner.batch_class(rows)
        if size not in self._plans:
            self._plans[size] = self._planner.class_plan(rows)
        return self._plans[size]

    def native(self, rows: int) -> Native | None:
        """The native runtime for that many rows, where they run by it: of a convolution, its patches."""
        size = self._planner.batch_class(rows)
        if size not in self._natives:
            plan = self._planner.rows_plan(rows)
            self._natives[size] = native(plan.recipe) if plan.executor == "native" else None
        return self._natives[size]

    def program(self, rows: int) -> Steps | Engine:
        """The array program for that many rows."""
        size = self._planner.batch_class(rows)
        if size not in self._programs:
            self._programs[size] = self.lowered(rows)
        return self._programs[size]

    def lowered(self, rows: int, minimize: str | None = None) -> Steps | Engine:
        """An array program for that many rows, planned for another objective where asked."""
        return self._executable(self._planner.program_plan(rows, minimize))

    def prepare(self) -> bool:
        """Plans what compiled and exported models run, where nothing may be planned while they are traced."""
        if self.compiled is None:
            self.compiled = self.lowered(_UNSEEN)
        return True

    def prepare_whole(self) -> bool:
        """The same for what makes W."""
        if self.whole is None:
            self.whole = self._executable(self._planner.whole())
        return True

    def _executable(self, plan: Plan) -> Steps | Engine:
        return Steps(plan.program) if self.engine is None else engine(self.engine, plan)


class LayerRunners:
    """The runners of one layer wherever it is.

    Args:
        layer: what is applied.
        phase: what plans are cheap for.
        minimize: what plans are cheap in.
        tune: measure candidates of the native runtime.
        engine: another library that contracts.
        batch: rows that plans are made for; None for the class of those that come.
        executor: the name of the one executor that may run, or a plan, by which all rows run.

    Raises:
        BackendError: a plan of another network.
    """

    def __init__(
        self,
        layer: OnNetwork,
        *,
        phase: str,
        minimize: str,
        tune: bool,
        engine: str | None,
        batch: int | None,
        executor: str | Plan | None = None,
    ) -> None:
        self.engine = engine
        self._planner = LayerPlanner(layer, Target("torch"), phase, minimize, tune, batch, executor)
        self._found: dict[tuple[torch.device, torch.dtype], Runners] = {}

    def __reduce__(self) -> Any:  # a copy finds its plans in the store
        planner = self._planner
        options: dict[str, Any] = {"phase": planner.phase, "minimize": planner.minimize, "tune": planner.tune}
        options |= {"engine": self.engine, "batch": planner.batch, "executor": planner.executor}
        return functools.partial(LayerRunners, planner.layer, **options), ()

    @property
    def layer(self) -> OnNetwork:
        """What is applied."""
        return self._planner.layer

    def forget(self) -> None:
        """Lets go of all plans and of what they were lowered to."""
        self._found.clear()

    def at(self, core: Tensor) -> Runners:
        """Those for the device of a core and the dtype in which it is computed: autocast's where that is on."""
        device, dtype = core.device, autocast_dtype(core.device.type) or core.dtype
        found = self._found.get((device, dtype))
        if found is None:
            where = target(device, dtype, engine=self.engine)
            found = Runners(dataclasses.replace(self._planner, target=where), self.engine)
            self._found[device, dtype] = found
        return found

    def refresh(self) -> None:
        """Forgets plans for targets that are described differently by now, for example after a calibration."""
        self._found = {
            (device, dtype): found
            for (device, dtype), found in self._found.items()
            if found.target == target(device, dtype, engine=self.engine)
        }
