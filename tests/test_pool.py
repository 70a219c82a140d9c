from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from herdbook.errors import UserError
from herdbook.pool import Pool, WorkerDied


class Square:
    """Squares; prints; refuses 13; dies at a negative number."""

    def __init__(self, plus: int) -> None:
        self.plus = plus

    def __call__(self, number: int) -> int:
        os.write(1, b"noise on stdout\n")
        if number == 13:
            raise UserError("thirteen", todo="count on")
        if number < 0:
            os.kill(os.getpid(), 9)
        return number * number + self.plus


def give_up(task: int, ask: Callable[[int], int]) -> int:
    try:
        return ask(task)
    except WorkerDied:
        return -1


# Workers import the factory by name, and test modules have none they could use.
Square.__module__ = "pool_square"
sys.modules["pool_square"] = sys.modules[__name__]


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pool_square.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order(workers: int) -> None:
    pool: Pool[int, int] = Pool(Square, (1,), workers, give_up)
    assert list(pool.map(n for n in range(40) if n != 13)) == [n * n + 1 for n in range(40) if n != 13]


def test_errors_come_through() -> None:
    pool: Pool[int, int] = Pool(Square, (0,), 2, give_up)
    with pytest.raises(UserError, match="thirteen"):
        list(pool.map(range(20)))


def test_a_worker_that_dies_costs_only_its_task() -> None:
    pool: Pool[int, int] = Pool(Square, (0,), 2, give_up)
    assert list(pool.map([2, -5, 3, 4])) == [4, -1, 9, 16]


def test_few_tasks_are_under_way() -> None:
    drawn = []

    def tasks() -> object:
        for number in range(14, 40):
            drawn.append(number)
            yield number

    pool: Pool[int, int] = Pool(Square, (0,), 2, give_up)
    results = pool.map(tasks())  # type: ignore[arg-type]
    next(results)
    assert len(drawn) <= 8
    results.close()


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            from operator import methodcaller
            from herdbook.pool import Pool
            print(list(Pool(methodcaller, ("upper",), 2, None).map(["a", "b"])))
        """)
    )
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['A', 'B']", done.stderr
