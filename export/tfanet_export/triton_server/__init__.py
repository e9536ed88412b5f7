"""A model repository for NVIDIA's Triton Inference Server (not Triton, the language of our kernels)."""
