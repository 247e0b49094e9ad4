"""A simulated NVIDIA driver: libcuda and libnvidia-ml over shared memory."""
