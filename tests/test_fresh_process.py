"""What the tests run in processes of their own: a fork is as a new interpreter, but for the libraries that it has."""

import signal
from pathlib import Path

import pytest
from fresh_process import SOURCE, WITHOUT_PACKAGE, run_elsewhere, run_script
from warm_process import run_two, run_warm

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("code", "status", "printed", "complaint"),
    [
        ("print('é')", 0, "é\n", ""),
        ("import sys; sys.exit('no such file')", 1, "", "no such file\n"),
        ("import sys; sys.exit(3)", 3, "", ""),
        ("raise ValueError('torn')", 1, "", "ValueError: torn\n"),
        ("import atexit; atexit.register(print, 'end')", 0, "end\n", ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, "", ""),
    ],
)
def test_code_ends_as_in_a_new_interpreter(code: str, status: int, printed: str, complaint: str):
    result = run_warm(code)
    assert (result.returncode, result.stdout) == (status, printed)
    assert result.stderr.endswith(complaint)


def test_code_has_the_arguments_folder_and_environment_that_it_is_given(tmp_path: Path):
    code = "import os, sys; from huggingface_hub import constants, hf_api\n"
    code += "print(sys.argv, os.getcwd(), dict(os.environ), constants.HF_HUB_OFFLINE, hf_api.api.endpoint, sep='\\n')"
    environment = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = run_warm(code, "a", "b c", cwd=tmp_path, environment=environment)
    lines = ["['-c', 'a', 'b c']", str(tmp_path), str(environment), "True", "http://127.0.0.1:9"]
    assert result.stdout.splitlines() == lines


def test_package_is_found_where_it_is_asked_for_and_nothing_stays_for_the_next_process(tmp_path: Path):
    for _ in range(2):
        run_elsewhere("import sys; assert 'dit_hf' not in sys.modules; import dit_hf", tmp_path, tmp_path)
        run_elsewhere(WITHOUT_PACKAGE, tmp_path, tmp_path)
    with pytest.raises(AssertionError):
        run_elsewhere(WITHOUT_PACKAGE + "import dit_hf", tmp_path, tmp_path)
    (tmp_path / "script.py").write_text("import sys, dit_hf, other; print(dit_hf.__file__, __name__, *sys.argv)")
    (tmp_path / "other.py").write_text("")
    words = run_script(tmp_path / "script.py", "a").stdout.split()
    assert words == [f"{SOURCE}/dit_hf/__init__.py", "__main__", str(tmp_path / "script.py"), "a"]


def test_two_processes_are_one_group():
    code = "import os, torch; import torch.distributed as d; d.init_process_group('gloo')\n"
    code += "ranks = [None, None]; d.all_gather_object(ranks, os.environ['LOCAL_RANK']); print(ranks, d.get_rank())"
    assert [result.stdout for result in run_two(code)] == ["['0', '1'] 0\n", "['0', '1'] 1\n"]
