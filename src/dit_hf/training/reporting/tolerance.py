"""What a run does about a report that cannot be written: it logs the failure and continues."""

import contextlib
from collections.abc import Iterator

from accelerate.logging import get_logger

logger = get_logger("dit_hf.training")


@contextlib.contextmanager
def tolerating(report: str) -> Iterator[None]:
    """Log an `OSError` of the block, such as a full disk or a missing permission, instead of raising it.

    Args:
        report: Name of what the block writes, such as "preview of step 100".
    """
    try:
        yield
    except OSError as error:
        logger.error(f"{report} failed: {error.strerror or error}. The training goes on")
