"""All benchmarks, one after the other."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

for script in ("speed.py", "seq2seq.py", "load_time.py", "home_commands.py"):
    print(f"== {script}", flush=True)
    subprocess.run([sys.executable, HERE / script], check=True)
