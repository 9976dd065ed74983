"""Which model runs a call, and is it asked in a chat or for a completion?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.parrot.faults import wrong

if TYPE_CHECKING:
    from proxy.gateway import Gateway
    from proxy.inner import InnerAnswer
    from proxy.parrot.config import ParrotConfig

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
LEARNT_MAX = 1_024
_SHOWN_MAX = 8
_NO_TEMPLATE = (b"must provide a chat template", b"no chat template", b"chat template is not set")
"""What vLLM and the transformers library say, blanks for underscores: that there is none, not that one went wrong."""


class Models:
    """/v1/models does not say which models can chat: their engine does, when it is asked to."""

    def __init__(self, gateway: Gateway, config: ParrotConfig) -> None:
        self._gateway = gateway
        self.config = config
        self._learnt: dict[str | None, None] = {}

    def served(self) -> list[str]:
        """The models that engines serve, in the engines' order; [] while none has told."""
        entries = [entry for engine in self._gateway.engines.values() for entry in engine.models or ()]
        return list(dict.fromkeys(str(entry["id"]) for entry in entries))

    def check(self, models: tuple[str, ...]) -> None:
        """RequestFault if a call names models and none of them is served."""
        served = self.served()
        if models and served and not set(models) & set(served):
            shown = ", ".join(served[:_SHOWN_MAX])
            raise wrong("models", f"none of them is served; there are {shown}", 404, "unknown_model")

    def choose(self, models: tuple[str, ...]) -> str | None:
        """The first of a call's models that is served; for a call without any the default. None: let the engine say."""
        served = self.served()
        if models:
            return next((name for name in models if name in served), models[0])
        return self.config.default_model or (served[0] if served else None)

    def endpoint(self, model: str | None) -> str:
        """How to ask it."""
        return COMPLETION if model in self.config.completion_models or model in self._learnt else CHAT

    def learn(self, model: str | None, answer: InnerAnswer) -> bool:
        """A chat was refused: whether that is because the model has no chat template, and so is a base model."""
        words = answer.body.lower().replace(b"_", b" ")
        if answer.status != 400 or not any(sign in words for sign in _NO_TEMPLATE):
            return False
        self._learnt[model] = None
        while len(self._learnt) > LEARNT_MAX:
            del self._learnt[next(iter(self._learnt))]
        return True
