"""Reads run folders and says what happened: figures, plots, one page."""

from lowcomm.report.figures import run_figures
from lowcomm.report.page import write_page
from lowcomm.report.runs import IslandRun, Run, find_runs, load_run

__all__ = ["IslandRun", "Run", "find_runs", "load_run", "run_figures", "write_page"]
