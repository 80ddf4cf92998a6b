"""Tables that Markdown and a terminal both show."""

from cfgdiff.export.markdown import table


def test_cells_of_a_column_are_equally_wide() -> None:
    assert table(["engine", "ms"], [["cpu float32", 12.5], ["-", 3]]).splitlines() == [
        "| engine      | ms   |",
        "| ----------- | ---- |",
        "| cpu float32 | 12.5 |",
        "| -           | 3    |",
    ]
    assert table(["engine"], []).splitlines() == ["| engine |", "| ------ |"]
