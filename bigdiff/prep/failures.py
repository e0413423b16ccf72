"""What was not downloaded, by whose server: hosts, opt-outs by their rule; and what a second try has brought."""

from typing import Final

import duckdb

from bigdiff.prep.fetch import OPTED_OUT
from bigdiff.prep.layout import PASSES, ROWS, Layout
from bigdiff.prep.page import Cell, Markup, bar, heading, note, share, table
from bigdiff.prep.query import database, quoted, run

HOSTS: Final = 20  # that are listed
SIGNALS: Final = 20  # of opt-outs that are listed
CAUSES: Final = 5  # of second tries that are told
_HOST_SHOWN: Final = 80  # characters
# What lies between what looks like a user's name and a port, a path, a query or a fragment.
_HOST: Final = r"^[^:]*://(?:[^/?#]*@)?(\[[^\]]*\]|[^/:?#]*)"
_NUMBERED: Final = "[0-9]*.parquet"  # a pass's files of facts, unlike its rows.parquet


def host_sql(column: str) -> str:
    """The host of a URL, in small letters."""
    return f"regexp_extract(lower({column}), {quoted(_HOST)}, 1)"


def written(base: duckdb.DuckDBPyConnection, layout: Layout) -> tuple[str, ...]:
    """Parts of the section on what was not downloaded; none where nothing was fetched."""
    if not layout.rejected.exists():
        return ()
    files = quoted(layout.rejected / "*.parquet")
    run(
        base,
        f"CREATE TABLE failed AS SELECT {host_sql('url')} AS host, cause, count(*) AS n "
        f"FROM read_parquet({files}) WHERE step = 'download' GROUP BY host, cause",
        "counting hosts",
    )
    parts = (*_hosts(base, layout), *_optouts(base))
    run(base, "DROP TABLE failed", "counting hosts")
    return parts


def _hosts(base: duckdb.DuckDBPyConnection, layout: Layout) -> tuple[Markup, ...]:
    """The hosts with most failures, and how much of what was asked of each has failed."""
    found = run(
        base,
        f"""WITH worst AS (
            SELECT host, sum(n)::BIGINT AS lost, arg_max(cause, (n, cause)) AS cause FROM failed
            GROUP BY host ORDER BY lost DESC, host LIMIT {HOSTS}
        ), asked AS (
            SELECT {host_sql("url")} AS host, count(*) AS urls FROM read_parquet({quoted(layout.selected)})
            WHERE host IN (SELECT host FROM worst) GROUP BY host
        )
        SELECT host, lost, urls, cause FROM worst JOIN asked USING (host) ORDER BY lost DESC, host""",
        "counting hosts",
    )
    if not found:
        return ()
    ((hosts,),) = run(base, "SELECT count(DISTINCT host) FROM failed", "counting hosts")
    rows: list[list[Cell]] = [
        [host[:_HOST_SHOWN], lost, urls, share(lost, urls), bar(lost, urls), cause] for host, lost, urls, cause in found
    ]
    many = f"The {HOSTS} of {hosts:,} hosts with most failures." if hosts > HOSTS else "Every host with failures."
    said = f"{many} One that refuses nearly all may block us: ask it less often, or leave it out."
    head = ("host", "failed", "URLs of it", "failed", "", "most frequent cause")
    return heading("By host"), note(said), table(head, rows, named=True)


def _optouts(base: duckdb.DuckDBPyConnection) -> tuple[Markup, ...]:
    """The signals by which owners asked not to be used, and of how many hosts."""
    found = run(
        base,
        f"SELECT cause, sum(n)::BIGINT AS rows, count(DISTINCT host) FROM failed "
        f"WHERE starts_with(cause, {quoted(OPTED_OUT)}) GROUP BY cause ORDER BY rows DESC, cause LIMIT {SIGNALS}",
        "counting opt-outs",
    )
    if not found:
        return ()
    total = sum(each[1] for each in found)
    rows: list[list[Cell]] = [
        [cause.removeprefix(OPTED_OUT), count, hosts, bar(count, total)] for cause, count, hosts in found
    ]
    said = "Signals that are obeyed: download.optout_directives and download.optout_tdm_reservation."
    return heading(f"Opted out: {total:,}"), note(said), table(("signal", "pictures", "hosts", ""), rows, named=True)


def second_tries(layout: Layout) -> str:
    """What the second pass brought of what the first one lost for a passing reason, in a sentence; "" without one.

    It is told, not written into the page: how a picture came does not change the set, and a killed job's next life
    may need other tries.
    """
    first, second = (layout.download / "*" / name for name in PASSES)
    if not any(layout.download.glob(f"*/{PASSES[1]}/{_NUMBERED}")):
        return ""
    with database(None, None) as base:
        found = run(
            base,
            f"""WITH tried AS (SELECT row FROM read_parquet({quoted(second / ROWS)})),
            lost AS (
                SELECT row, error_message AS cause FROM read_parquet({quoted(first / _NUMBERED)}, union_by_name = true)
            ),
            won AS (
                SELECT row FROM read_parquet({quoted(second / _NUMBERED)}, union_by_name = true)
                WHERE status = 'success'
            )
            SELECT cause, count(*) AS tried, count(won.row) FROM tried JOIN lost USING (row)
            LEFT JOIN won USING (row) GROUP BY cause ORDER BY tried DESC, cause""",
            "counting second tries",
        )
    if not found:
        return ""
    tried, won = (sum(each[place] for each in found) for place in (1, 2))
    causes = ", ".join(f"{cause}: {got:,} of {asked:,}" for cause, asked, got in found[:CAUSES])
    return f"the second pass brought {won:,} of {tried:,} pictures that the first lost for a passing reason ({causes})"
