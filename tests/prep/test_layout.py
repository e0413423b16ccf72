from pathlib import Path

from bigdiff.prep.layout import Layout


def test_only_the_report_lies_outside_the_work_folder() -> None:
    layout = Layout(Path("/set"))
    inside = [
        layout.settings,
        layout.selected,
        layout.selection,
        layout.part(3),
        layout.samples,
        layout.pictures,
        layout.rejected,
        layout.plan,
        layout.shards,
    ]
    assert len(set(inside)) == len(inside)
    assert all(layout.work in path.parents for path in inside)
    assert layout.work not in layout.report.parents
    assert layout.part(3).name == "00003"
