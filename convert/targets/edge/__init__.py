"""TensorRT Edge-LLM, which makes TensorRT engines of ModelOpt's and GPTQ's folders."""
