"""What can go wrong for a user, as one tree of exceptions.

* DetbenchError          the command line prints it as one message and exits with its `exit_code`
  - RecipeError      2   the text can't be read as a recipe, or asks for what can't be
  - DataError        2   a data set is missing, or isn't what its recipe says
  - StoreError       2   a run folder is missing, locked or not what it should be
  - RunFailed        1   a run started and could not end
    - NonFiniteLoss  1   a loss became NaN or infinite
  - VerifyFailed     1   a finished run no longer says what it measured
  - BatchFailed      4   some runs of several failed, the others are done
  - GateFailed       3   a measured number misses what was promised
  - BudgetRefused    5   the work asked for is larger than the budget given
  - Interrupted    130   the user stopped the work; what was done is kept

A message says where, what was found, what was expected and what to do.
"""

from __future__ import annotations


class DetbenchError(Exception):
    """Anything that the user, not a programmer, should read."""

    exit_code = 2


class RecipeError(DetbenchError):
    """A recipe or an override that can't be resolved. Lists all mistakes at once.

    Attributes:
        problems: one line for each mistake, each with its own place.
    """

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(DetbenchError):
    """A data set, an annotation file or an image that can't be used."""


class StoreError(DetbenchError):
    """A run folder that is missing, in use, or damaged."""


class RunFailed(DetbenchError):
    """A run that started and could not end."""

    exit_code = 1


class NonFiniteLoss(RunFailed):
    """A loss that became NaN or infinite; the last good checkpoint is kept."""


class BatchFailed(DetbenchError):
    """Some runs of a batch failed; the rest are finished."""

    exit_code = 4


class GateFailed(DetbenchError):
    """A measured number or claim that misses what was promised."""

    exit_code = 3


class VerifyFailed(DetbenchError):
    """A finished run no longer says what it measured."""

    exit_code = 1


class BudgetRefused(DetbenchError):
    """More work than the budget allows; nothing was started."""

    exit_code = 5


class Interrupted(DetbenchError):
    """Stopped by the user; finished runs and checkpoints are kept."""

    exit_code = 130
