"""The command line as a user meets it: exit codes, messages, JSON, and that it starts without torch."""

import contextlib
import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live
from typer.testing import CliRunner

from detbench import live, recipes, runs, workers
from detbench.cli import app, main, running
from detbench.errors import DataError
from detbench.results import RESULT
from detbench.store import Store

ROOT = Path(__file__).parent.parent


def detbench(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "detbench", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A store with the quickstart at smoke scale, two seeds."""
    runs = tmp_path_factory.mktemp("store") / "runs"
    outcome = detbench(
        "run", "quickstart", "--scale", "smoke", "--seeds", "2", "--jobs", "2", "--runs", str(runs)
    )
    assert outcome.returncode == 0, outcome.stderr
    assert "DATE-F" in outcome.stdout
    assert "6 runs, 0 finished before" in outcome.stderr
    return runs


def test_help_is_quick_and_lists_every_command():
    started = time.perf_counter()
    outcome = detbench("--help")
    assert time.perf_counter() - started < 2, "a loaded machine is slow, but not that slow"
    assert outcome.returncode == 0
    commands = "ls show validate plan run ablate report runs diff verify doctor data"
    for command in commands.split():
        assert command in outcome.stdout


def _help_examples() -> list[list[str]]:
    commands = [command.epilog or "" for command in app.registered_commands]
    lines = (line.strip() for epilog in commands for line in epilog.splitlines())
    return [shlex.split(line) for line in lines if line.startswith("detbench ")]


def test_the_help_of_the_main_commands_ends_in_examples():
    assert {example[1] for example in _help_examples()} == {"run", "ablate", "report"}


@pytest.mark.parametrize("example", _help_examples(), ids=" ".join)
def test_an_example_of_the_help_is_taken(example, tmp_path):
    if "FOLDER" in example:
        folder = str(tmp_path / "FOLDER")
        assert detbench("data", "make", folder, "--size", "64", "--train", "2", "--val", "2").returncode == 0
    _, command, *arguments = example
    if command == "run":  # `plan` resolves the same and trains nothing
        command, arguments = "plan", [word for word in arguments if word not in ("--jobs", "2")]
    outcome = detbench(
        command, *arguments, "--runs", str(tmp_path), *(["--dry-run"] if command == "ablate" else []), cwd=tmp_path
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["ls"],
        ["show", "quickstart/fcos"],
        ["validate", "quickstart"],
        ["plan", "quickstart"],
        ["runs"],
        ["report"],
    ],
    ids=lambda a: " ".join(a),
)
def test_what_only_reads_needs_no_torch(arguments, tmp_path):
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"sys.argv = ['detbench', *{arguments!r}]\n"
        "from detbench.cli import main\n"
        "main()\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    "arguments", [["run", "quickstart/fcos", "--scale", "smoke"], ["report", "-o"]], ids=lambda a: a[0]
)
def test_a_folder_that_cannot_be_written_to_is_one_message(arguments, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("a file", encoding="utf-8")
    command = [*arguments, str(taken)] if arguments[-1] == "-o" else [*arguments, "--runs", str(taken)]
    outcome = detbench(*command, cwd=tmp_path)
    assert outcome.returncode == 2
    assert str(taken) in outcome.stderr and "Traceback" not in outcome.stderr


def test_what_the_system_refuses_is_one_message(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "below/file")

    monkeypatch.setattr(recipes, "names", refuse)
    monkeypatch.setattr("sys.argv", ["detbench", "ls", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert "below/file: can't be read or written (Permission denied)" in said.err
    assert json.loads(said.out)["error"]["kind"] == "StoreError"


@pytest.mark.parametrize(
    "arguments", [["run", "quickstart"], ["eval", "run", "--data", "data"], ["predict", "run", "image.png"]]
)
def test_a_mistyped_device_is_refused_before_anything_else(arguments):
    outcome = CliRunner().invoke(app, [*arguments, "--device", "cdua"])
    assert outcome.exit_code == 2
    assert "cdua: no such device" in outcome.output


def test_the_launcher_in_a_clone_is_the_same_command_line():
    outcome = subprocess.run(
        [sys.executable, "cli.py", "--version"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert outcome.stdout.startswith("detbench ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "date/tabel5"], ["date/tabel5", "did you mean 'date/table5'?"]),
        (
            ["run", "quickstart", "optim.lrr=1"],
            ["quickstart: optim.lrr: no such key; did you mean 'optim.lr'?"],
        ),
        (["plan", "quickstart", "optim.lr=fast"], ["optim.lr: input should be a valid number", '"fast"']),
        (["plan", "quickstart", "a=1", "b=2"], ["a: no such key", "b: no such key"]),
        (
            ["plan", "quickstart", "training.accumulate=3"],
            ["training.accumulate: 3 doesn't divide the batch of 4"],
        ),
        (["plan", "quickstart", "--data", "no/such/folder"], ["no/such/folder: no such folder"]),
        (["show", "quickstart/fcso"], ["no row of quickstart is called 'fcso'; did you mean 'fcos'?"]),
        (["ablate", "--param", "alpha"], ["--recipe align-detr/table5", "--recipe match-free/table3"]),
        (["ablate", "--param", "lambda_o2n"], ["did you mean 'lambda_o2", "--recipe"]),
        (["run", "align-detr/table1/stable-dino-*"], ["none of the chosen rows can run", "memory fusion"]),
        (
            ["ablate", "--param", "lambda_o2m", "--recipe", "date/table7"],
            ["date/table7 sweeps no 'lambda_o2m'; it is swept in date/table10"],
        ),
        (["ablate"], ["give --param NAME"]),
        (["ls", "quickstrat", "date/table99/x"], ["did you mean 'quickstart'?", "date/table99/x: no recipe"]),
        (
            ["show", "quickstart", "date/table5", "branches.o2m.weight=-1"],
            ["quickstart: branches.o2m.weight: input", "date/table5: branches.o2m.weight: input"],
        ),
        (["run", "optim.lr=1"], ["name at least one recipe"]),
        (["report", "quickstart/nope"], ["no row of quickstart is called 'nope'"]),
        (["data", "check", "no/such/folder"], ["no/such/folder"]),
    ],
    ids=lambda a: " ".join(a) if a and "/" in a[0] else None,
)
def test_a_mistake_gets_one_message_and_exit_code_2(arguments, words, tmp_path):
    outcome = detbench(*arguments, cwd=tmp_path)
    assert outcome.returncode == 2
    assert "Traceback" not in outcome.stderr
    for word in words:
        assert word in outcome.stderr


def test_errors_are_json_too():
    outcome = detbench("plan", "quickstart", "optim.lrr=1", "--json")
    assert outcome.returncode == 2
    assert json.loads(outcome.stdout)["error"]["kind"] == "RecipeError"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["plan", "quickstart", "--scael", "cpu"], "--scael"),
        (["plan", "quickstart", "--scale", "huge"], "'huge'"),
        (["plna"], "plna"),
        (["data", "check"], "folder"),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else None,
)
def test_a_mistyped_command_line_is_json_too(arguments, words):
    outcome = detbench(*arguments, "--json")
    assert outcome.returncode == 2
    error = json.loads(outcome.stdout)["error"]
    assert error["kind"] == "UsageError"
    assert words in error["message"]


def test_runs_that_fail_are_one_json_document_with_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(
        workers, "execute", lambda cells, **_: [workers.Outcome(cell, "failed", "boom") for cell in cells]
    )
    arguments = ["run", "quickstart/fcos", "--scale", "smoke", "--runs", str(tmp_path), "--json"]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 1
    tree = json.loads(outcome.stdout)
    assert tree["error"] == {"kind": "RunFailed", "message": "1 of 1 runs failed:\nFCOS, seed 0: boom"}
    assert [table["name"] for table in tree["tables"]] == ["quickstart"]
    assert "boom" in outcome.stderr


@pytest.mark.parametrize("same", [True, False], ids=["the same", "different"])
def test_what_no_run_can_do_is_one_mistake_in_what_was_asked(same, tmp_path, monkeypatch):
    def refuse(cells, **_):
        told = ["no such folder"] * 2 if same else ["no such folder", "no such file"]
        return [
            workers.Outcome(cell, "failed", words, "DataError")
            for cell, words in zip(cells, told, strict=True)
        ]

    monkeypatch.setattr(workers, "execute", refuse)
    outcome = CliRunner().invoke(
        app, ["run", "quickstart/fcos", "--scale", "smoke", "--seeds", "2", "--runs", str(tmp_path)]
    )
    assert isinstance(outcome.exception, DataError)
    assert outcome.exception.exit_code == 2
    assert not outcome.stdout
    several = "FCOS, seed 0: no such folder\nFCOS, seed 1: no such file"
    assert str(outcome.exception) == ("no such folder" if same else several)


@pytest.mark.slow
def test_a_mistake_that_only_a_worker_notices_exits_with_2_and_prints_no_table(tmp_path):
    folder = tmp_path / "shapes"
    assert detbench("data", "make", str(folder), "--size", "64", "--train", "2", "--val", "2").returncode == 0
    val = folder / "annotations" / "instances_val.json"
    tree = json.loads(val.read_text(encoding="utf-8"))
    tree["categories"][0]["name"] = "dodecahedron"
    val.write_text(json.dumps(tree), encoding="utf-8")
    outcome = detbench(
        "run", "quickstart/fcos", "--scale", "smoke", "--data", str(folder), "--runs", str(tmp_path / "runs")
    )
    assert outcome.returncode == 2
    assert "dodecahedron" in outcome.stderr
    assert not outcome.stdout


def test_data_with_errors_is_one_json_document_with_the_findings(tmp_path):
    folder = tmp_path / "shapes"
    assert detbench("data", "make", str(folder), "--size", "64", "--train", "2", "--val", "2").returncode == 0
    (folder / "images" / "val_000001.png").unlink()
    outcome = detbench("data", "check", str(folder), "--json")
    assert outcome.returncode == 2
    tree = json.loads(outcome.stdout)
    assert tree["error"]["kind"] == "DataError"
    assert [finding["severity"] for finding in tree["findings"]].count("error") == 1


def test_many_findings_of_a_kind_are_shown_in_part_and_listed_whole_as_json(tmp_path):
    folder = tmp_path / "shapes"
    assert detbench("data", "make", str(folder), "--size", "64", "--train", "9", "--val", "7").returncode == 0
    for image in folder.glob("images/*"):
        image.unlink()
    (folder / "images" / "other.png").touch()
    lines = detbench("data", "check", str(folder)).stdout.splitlines()
    assert sum("no such image file" in line for line in lines) == 10
    assert f"error: {folder}/images: images that can't be read: 6 more; --json lists all." in lines
    tree = json.loads(detbench("data", "check", str(folder), "--json").stdout)
    assert sum("no such image file" in finding["what"] for finding in tree["findings"]) == 16


def test_a_table_with_rows_that_never_run_can_be_shown_as_json():
    outcome = CliRunner().invoke(app, ["show", "date/table1", "match-free/table2", "date/table4", "--json"])
    assert outcome.exit_code == 0, outcome.output
    states = {}
    for entry in json.loads(outcome.stdout):
        states.setdefault(entry["state"], []).append(entry)
    assert set(states) == {"runs", "quoted", "needs parts"}
    assert all(entry["experiment"] and not entry["needs"] for entry in states["runs"])
    assert all(entry["experiment"] is None for entry in states["quoted"] + states["needs parts"])
    assert all(entry["needs"] for entry in states["needs parts"])


def test_a_row_is_shown_with_an_override_that_its_baseline_has_no_key_for():
    row, override = "date/table5/date-f-ours-poto", "branches.o2m.assigner.center_radius=1.5"
    outcome = CliRunner().invoke(app, ["show", row, override])
    assert outcome.exit_code == 0, outcome.output
    assert "branches.o2m.assigner.center_radius = 1.5" in outcome.stdout
    assert "'Baseline (OneNet)', can't be run so" in outcome.stdout
    (tree,) = json.loads(CliRunner().invoke(app, ["show", row, override, "--json"]).stdout)
    assert tree["changes"] == {}


@pytest.mark.parametrize("command", ["report", "validate"])
def test_what_takes_no_overrides_promises_none(command):
    assert "KEY=VALUE" not in CliRunner().invoke(app, [command, "--help"]).stdout


def test_a_grid_says_on_stderr_which_series_it_takes(tmp_path):
    outcome = CliRunner().invoke(
        app,
        ["ablate", "--param", "lambda_o2m", "--param", "lambda_o2o", "--dry-run", "--runs", str(tmp_path)],
    )
    assert outcome.exit_code == 0, outcome.output
    assert "Of lambda_o2m this is the series 'DATE-F'" in outcome.stderr


def test_a_finished_run_that_is_forced_is_shown_at_work(tmp_path):
    store = Store(tmp_path)
    (cell,) = runs.plan(recipes.select(["quickstart/fcos"]), recipes.Context("smoke"), seeds=[0], store=store)
    runs.request(cell)
    (cell.folder / RESULT).touch()
    shown = io.StringIO()
    with Live(console=Console(file=shown, force_terminal=True), auto_refresh=False) as screen:
        watch = live._Screen([cell], screen)
        watch([cell], [])
    assert "running" in shown.getvalue()
    assert "was finished" not in shown.getvalue()


@pytest.fixture
def hears_hangups():
    """Hears SIGHUP in this process and those it starts, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_while_runs_are_at_work_a_signal_to_stop_is_an_interrupt(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), running._signals_interrupt():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_under_nohup_a_hangup_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with running._signals_interrupt():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_told_to_stop_stops_its_workers(number, tmp_path):
    require_stops(getattr(signal, number), tmp_path, once=lambda: list(tmp_path.glob("*/0/environment.json")))


@pytest.mark.slow
def test_a_job_in_the_background_of_a_script_stops_workers_that_are_still_starting(tmp_path):
    """Such jobs, and all that they start, are born with SIGINT ignored."""
    deaf = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    require_stops(signal.SIGTERM, tmp_path, once=lambda: list(tmp_path.glob("*/0/log.txt")), shell=deaf)


def require_stops(number, runs, once, shell=()):
    started = subprocess.Popen(
        [*shell, sys.executable, "-m", "detbench", "run", "quickstart/fcos", "schedule.length=1000000",
         "--scale", "smoke", "--runs", str(runs)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    workers = []
    try:
        give_up = time.monotonic() + 60
        while not (once() and workers):
            assert started.poll() is None and time.monotonic() < give_up, "the worker never began"
            time.sleep(0.1)
            workers = [int(worker) for worker in children.read_text(encoding="utf-8").split()]
        started.send_signal(number)
        _, said = started.communicate(timeout=60)
        assert started.returncode == 130, said
        assert "stopped; finished runs and checkpoints are kept" in said
        (worker,) = workers
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    finally:  # nothing may go on training when the test has failed
        for process in [started.pid, *workers]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        started.wait()
        started.stderr.close()


def test_a_budget_that_is_too_small_is_refused_with_5(tmp_path):
    outcome = detbench("run", "date/table1", "--budget", "0.5", "--runs", str(tmp_path / "runs"))
    assert outcome.returncode == 5
    assert "over the budget of 0.5; nothing started" in outcome.stderr
    assert not list(tmp_path.glob("runs/*/*/result.json"))


def test_every_listing_has_json():
    listed = json.loads(detbench("ls", "--json").stdout)
    assert {"date/table5", "align-detr/table5"} <= {recipe["name"] for recipe in listed}
    states = {row["state"] for recipe in listed for row in recipe["rows"]}
    assert states == {"runs", "quoted", "needs parts"}
    shown = json.loads(detbench("show", "date/table5/baseline-onenet-poto", "--json").stdout)
    assert shown[0]["changes"]["branches.o2o.assigner"][1]["kind"] == "poto"
    planned = json.loads(detbench("plan", "date/table6", "--json").stdout)
    assert [cell["trains"] for cell in planned["cells"]] == [True, False, True, False]
    assert json.loads(detbench("validate", "quickstart", "--json").stdout)["runnable"] == 3


def test_shown_settings_are_valid_overrides(tmp_path):
    shown = detbench("show", "quickstart/date-f").stdout.splitlines()
    pairs = [line.partition(" = ") for line in shown if " = " in line and line[0] != "#"]
    overrides = [f"{key}={value}" for key, _, value in pairs]
    assert any(override.startswith("optim.kind=") for override in overrides)
    again = detbench("plan", "quickstart/date-f", *overrides, "--runs", str(tmp_path), "--json")
    plain = detbench("plan", "quickstart/date-f", "--runs", str(tmp_path), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["cells"][0]["digest"] == json.loads(plain.stdout)["cells"][0]["digest"]


def test_a_second_run_trains_nothing_and_prints_the_same_table(done):
    again = detbench("run", "quickstart", "--scale", "smoke", "--seeds", "2", "--runs", str(done))
    assert again.returncode == 0
    assert "6 runs, 6 finished before" in again.stderr
    reported = detbench("report", "quickstart", "--runs", str(done))
    assert reported.stdout == again.stdout


def test_report_writes_page_tables_and_plots(done, tmp_path):
    outcome = detbench("report", "--runs", str(done), "-o", str(tmp_path / "site"))
    assert outcome.returncode == 0, outcome.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "OneNet" in page
    assert "<svg" in page
    assert list((tmp_path / "site" / "tables").iterdir())


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json", "latex", "html"])
def test_report_prints_every_form(done, form):
    outcome = detbench("report", "quickstart", "--runs", str(done), "--format", form)
    assert outcome.returncode == 0, outcome.stderr
    assert "DATE-F" in outcome.stdout


def test_running_a_row_prints_that_row_beside_its_baseline(done):
    outcome = detbench(
        "run", "quickstart/date-f", "--scale", "smoke", "--seeds", "2", "--json", "--runs", str(done)
    )
    assert outcome.returncode == 0, outcome.stderr
    ((row,),) = [table["rows"] for table in json.loads(outcome.stdout)]
    assert row["label"] == "DATE-F"
    assert row["cells"][0]["difference"] is not None
    assert "The baseline is 'OneNet', which was not asked for here." in outcome.stdout


def test_runs_lists_what_there_is(done):
    listed = json.loads(detbench("runs", "--runs", str(done), "--json").stdout)
    assert len(listed) == 6
    assert {entry["state"] for entry in listed} == {"finished"}


def test_an_ablation_is_a_recipe_that_can_be_reported_again(tmp_path):
    runs = str(tmp_path / "runs")
    arguments = ["--param", "lambda_o2m", "--values", "1,3", "--scale", "smoke", "--runs", runs]
    outcome = detbench("ablate", *arguments)
    assert outcome.returncode == 0, outcome.stderr
    (recipe,) = (tmp_path / "runs" / "ablations").glob("*.toml")
    again = detbench("report", str(recipe), "--runs", runs)
    assert again.returncode == 0, again.stderr
    assert again.stdout == outcome.stdout
    assert "lambda_o2m=3" in again.stdout
    assert "37.3" in again.stdout, "the paper's number stands beside the value it has"


def test_ablating_a_key_path_changes_that_key_whatever_the_scale_says(tmp_path):
    outcome = detbench(
        "ablate", "--param", "optim.lr", "--recipe", "quickstart", "--row", "FCOS", "--values", "1e-3,1e-4",
        "--dry-run", "--json", "--runs", str(tmp_path),
    )  # fmt: skip
    cells = json.loads(outcome.stdout)["cells"]
    assert len(cells) == 2
    assert cells[0]["digest"] != cells[1]["digest"]


def test_a_value_that_does_not_fit_is_told_of_the_recipe_that_was_asked_for(tmp_path):
    outcome = detbench(
        "ablate", "--param", "optim.lr", "--recipe", "quickstart", "--values", "1e-3,abc", "--runs", str(tmp_path)
    )  # fmt: skip
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1] == (
        'ablate: quickstart: optim.lr: input should be a valid number, found "abc" (in the rows optim.lr=abc)'
    )


def test_a_grid_has_every_combination(tmp_path):
    outcome = detbench(
        "ablate", "--param", "lambda_o2m", "--param", "lambda_o2o", "--values", "1,2", "--values", "1,2,4",
        "--dry-run", "--json", "--runs", str(tmp_path),
    )  # fmt: skip
    cells = json.loads(outcome.stdout)["cells"]
    assert len({cell["digest"] for cell in cells}) == 6


def test_data_make_writes_what_data_check_accepts(tmp_path):
    folder = tmp_path / "shapes"
    made = detbench("data", "make", str(folder), "--size", "64", "--train", "4", "--val", "3")
    assert made.returncode == 0, made.stderr
    checked = detbench("data", "check", str(folder))
    assert checked.returncode == 0, checked.stderr
    (folder / "images" / "val_000001.png").unlink()
    broken = detbench("data", "check", str(folder))
    assert broken.returncode == 2
    assert "val_000001.png" in broken.stdout
    run = detbench(
        "run", "quickstart/fcos", "--scale", "smoke", "--data", str(folder), "--runs", str(tmp_path / "r")
    )
    assert run.returncode == 2
    assert "val_000001.png" in run.stderr
    assert "Traceback" not in run.stderr
