#!/bin/sh
# Check robench on a CUDA machine in at most 8 minutes (--minutes) and print one table; perf/gpu.py lists the options.
#
#     perf/gpu.sh
#     perf/gpu.sh --device cpu --n 8 --minutes 1      # a miniature that tries every line without a GPU
cd "$(dirname "$0")/.." && exec "$(command -v python || command -v python3)" perf/gpu.py "$@"
