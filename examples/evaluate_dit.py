# /// script
# requires-python = ">=3.11"
# dependencies = ["dit-hf"]
# ///
"""Evaluate a DiT: `dit-hf evaluate` as one file, which `uv run` and HF Jobs start from its address.

    uv run evaluate_dit.py --model user/dit --reference user/images --num-images 10000
    python examples/evaluate_dit.py --help    # describes every option

docs/jobs.md says how to start it on a machine of the Hub.
"""

import sys

from dit_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    main()
