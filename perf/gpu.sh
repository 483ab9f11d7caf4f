#!/bin/sh
# Check robench on a CUDA machine and print one table. It aims at 8 minutes (--minutes); perf/gpu.py lists the options.
#
#     perf/gpu.sh
#     perf/gpu.sh --device cpu --n 8 --minutes 1      # a miniature that tries every line without a GPU
cd "$(dirname "$0")/.." && exec python perf/gpu.py "$@"
