import io
from contextlib import redirect_stderr

from tqdm import tqdm

from bigdiff.runtime.terminal import say


def test_a_sentence_stands_on_a_line_of_its_own_above_a_bar() -> None:
    screen = io.StringIO()
    with redirect_stderr(screen), tqdm(total=3, desc="working", file=screen, mininterval=0) as bar:
        bar.update()
        say("part 00000: [bold]as it is[/bold]")
        bar.update(2)
    shown = screen.getvalue()
    assert "\rpart 00000: [bold]as it is[/bold]\n" in shown.replace("\r\r", "\r")
    assert shown.index("as it is") < shown.rindex("3/3")
