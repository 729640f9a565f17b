"""What `--help` says of each command, and the examples that it ends with."""

import shlex
import sys

import numpy as np
import pytest
import typer

from tn4nn import _cli
from tn4nn._cli import commands, usage

GROUP = typer.main.get_command(commands.app)
ALL = [(command, example) for command, examples in usage.EXAMPLES.items() for example in examples]
# They train for minutes, compile, measure this machine, or need a file, a GPU or data that may be absent here.
NOT_RUN = {
    "tn4nn compare --model gpt --task shakespeare --budget 0.25 --steps 500",
    "tn4nn decompose model.safetensors tree --tensor fc.weight --error 0.5 --out small.safetensors",
    "tn4nn calibrate",
    "tn4nn calibrate --backend torch --device cuda --dtype bfloat16",
    "tn4nn build-kernel",
    "tn4nn reproduce fc2 --quick",
}


def params():
    return [(name, param) for name, command in GROUP.commands.items() for param in command.params]


def parsed(example):
    """The values that a command line stands for; leaves with an error where it stands for none."""
    program, name, *arguments = shlex.split(example)
    assert program == "tn4nn"
    context = GROUP.make_context(program, [name])
    return GROUP.commands[name].make_context(name, arguments, parent=context).params


def test_every_command_has_examples_and_ends_its_help_with_them():
    assert set(usage.EXAMPLES) == set(GROUP.commands)
    for name, command in GROUP.commands.items():
        assert all(example in command.epilog for example in usage.EXAMPLES[name])


@pytest.mark.parametrize(("command", "example"), ALL)
def test_examples_are_of_their_command_and_parse(command, example):
    assert shlex.split(example)[1] == command
    assert set(parsed(example)) >= {param.name for param in GROUP.commands[command].params} - {"help"}


def test_an_example_that_does_not_parse_is_seen():
    with pytest.raises(Exception, match="No such option"):
        parsed("tn4nn plan mpo --ranks 8")


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, marks=pytest.mark.thorough if command == "compare" else ())  # it trains for seconds
        for command, example in ALL
        if example not in NOT_RUN
    ],
)
def test_examples_run(example, monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    np.save("W.npy", np.random.default_rng(0).normal(size=(32, 32)))
    monkeypatch.setattr(sys, "argv", shlex.split(example))
    with pytest.raises(SystemExit) as end:
        _cli.main()
    assert end.value.code == 0
    assert capsys.readouterr().out


def test_what_is_not_run_is_an_example():
    assert {example for _, example in ALL} >= NOT_RUN


def test_every_option_says_what_it_is():
    """In square brackets it would be markup, and gone."""
    assert [f"{name} {param.name}" for name, param in params() if not param.help or "[" in param.help] == []
