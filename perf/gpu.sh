#!/bin/sh
# Check robench on a CUDA machine in under 8 minutes and print one table; see perf/gpu.py for the options.
#
#     perf/gpu.sh
#     perf/gpu.sh --device cpu --n 8 --minutes 1      # a miniature that tries every line without a GPU
cd "$(dirname "$0")/.." && exec python perf/gpu.py "$@"
