"""What was only looked at is listed when the session ends."""

from __future__ import annotations


def pytest_terminal_summary(terminalreporter) -> None:
    lines = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "teardown" or hasattr(report, "user_properties")
        for name, value in getattr(report, "user_properties", ())
        if name == "dry run" and report.when == "teardown"
    ]
    if lines:
        terminalreporter.section("documented commands that were not run, only looked at")
        for line in lines:
            terminalreporter.write_line(line)
