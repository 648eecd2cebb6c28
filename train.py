"""accelerate launch train.py RECIPE [key=value …]: the same as `lora-cot train`, on as many processes as launched."""

import sys

from lora_cot.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
