"""Evaluates each argument with pynvml imported and initialised; prints the list as JSON.

An NVML error is shown as its number; ctypes structures and handles are up to the expression.
"""

import json
import sys

import pynvml

answers = []
try:
    pynvml.nvmlInit()
except pynvml.NVMLError as error:
    print(json.dumps([f"init {error.value}"]))
    sys.exit()
scope = {"n": pynvml, "h": lambda index: pynvml.nvmlDeviceGetHandleByIndex(index)}
for expression in sys.argv[1:]:
    try:
        answers.append(eval(expression, scope))
    except pynvml.NVMLError as error:
        answers.append(f"error {error.value}")
print(json.dumps(answers))
