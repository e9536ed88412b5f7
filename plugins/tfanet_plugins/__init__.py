"""TensorRT plugins for the operations of `tfanet.ops`: none yet; engines run the function bodies."""
