from tests.kernels.interpreter import correct_interpreter

correct_interpreter()
