"""What a wrong command line is told."""

from __future__ import annotations

import pytest

from data_pipelines.__main__ import main as data
from data_pipelines.ingest.__main__ import main as ingest
from data_pipelines.synthetic import main as synthetic


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (ingest, ["--source", "a", "--out", "b", "--holdout", "0.1"],
         "error: unrecognized arguments: --holdout 0.1 (did you mean --hold-out?)"),
        (ingest, ["a", "--out=b"], "error: the following arguments are required: --source"),
        (data, ["inspect", "a", "--segmnts=3"], "(did you mean --segments?)"),
        (data, ["inspekt", "a"], "(choose from "),
        (synthetic, ["--out=a", "--zoom=2"], "unrecognized arguments: --zoom=2"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_with_the_one_that_was_meant(main, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and said in line
