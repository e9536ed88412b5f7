"""FP16 error block by block, and the blocks to keep FP32."""
