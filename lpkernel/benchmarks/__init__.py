"""The benchmark suite behind `lpkernel bench`: ours beside peers, every answer checked before it is timed.

data.py banks and queries; peers.py, torch_float32.py the peers; points.py what is run, decoding.py that for decoders;
checks.py what is right; measure.py time and memory; machine.py threads, facts and physical limits; suite.py the sweeps;
report.py and plots.py the readable results. See docs/benchmarks.md.
"""
