"""The search: from a task and a limit to a verified Pareto front."""

from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.engine import Baseline, Evaluator
from autocompress.search.loop import search
from autocompress.search.progress import Progress, Snapshot
from autocompress.search.study import Study, load

__all__ = ["Baseline", "Candidate", "Evaluator", "Progress", "Rung", "Snapshot", "Status", "Study", "load", "search"]
