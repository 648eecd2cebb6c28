"""Which engines can serve a family, as it was on 21 November 2026: vLLM 0.33, SGLang 0.5.23, transformers 5.23."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Support:
    """What can serve the merged models of a family."""

    vllm: str
    """yes or no, and since or until when."""
    sglang: str
    transformers: str
    advice: str
    """One sentence."""
    server: str
    """Which of them the card shows: vllm, sglang, or nothing if neither serves it."""

    def line(self) -> str:
        """For people, in one line."""
        return f"vLLM {self.vllm}; SGLang {self.sglang}; transformers {self.transformers}. {self.advice}"

    def to_json(self) -> dict[str, str]:
        """By engine."""
        values = asdict(self)
        return {name: values[name] for name in ("vllm", "sglang", "transformers", "advice")}


SUPPORT = {
    "llava": Support(
        "yes", "yes, by its documentation", "yes", "vLLM serves the merged model under the base's own architecture.", "vllm"
    ),
    "qwen2_vl": Support("yes", "yes", "yes", "vLLM serves the merged model under the base's own architecture.", "vllm"),
    "mllama": Support(
        "no (until 0.10.2)",
        "yes",
        "yes, one question at a time",
        "Serve the merged model with SGLang, on a private network; vLLM dropped Mllama after 0.10.2.",
        "sglang",
    ),
    "t5_vision": Support("no", "no", "yes, with lora_cot", "Only lora_cot runs it: no server knows T5 with vision.", ""),
    "t5_vision_tuned": Support("no", "no", "yes, with lora_cot", "Only lora_cot runs it: no server knows T5 with vision.", ""),
    "t5_diffusion": Support(
        "no", "no", "yes, with lora_cot[diffusion]", "Only lora_cot runs it: no server knows T5 with vision.", ""
    ),
}
"""By family."""
