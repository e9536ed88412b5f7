"""FP16 drift: which block of the model adds which error, and which blocks to keep in FP32."""
