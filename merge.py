"""python merge.py RUN [--output DIR] [--onto auto|full|dequantized] [--push REPO]: the same as `lora-cot merge`."""

import sys

from lora_cot.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "merge")
    main()
