"""What a server counts, in the text form that Prometheus reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Metrics:
    """Counts since the server began. Each is written by one thread."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path and status
    refused: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0

    def stepped(self, answers: int, seconds: float) -> None:
        """A batch has written one token of so many answers."""
        self.steps, self.tokens, self.seconds = self.steps + 1, self.tokens + answers, self.seconds + seconds

    def text(self, running: int, waiting: int, models: int) -> str:
        """Version 0.0.4 of Prometheus' text format."""
        lines = list[str]()

        def tell(name: str, kind: str, what: str, value: float) -> None:
            lines.extend([f"# HELP microplane_{name} {what}", f"# TYPE microplane_{name} {kind}"])
            lines.append(f"microplane_{name} {value:g}")

        lines += [
            "# HELP microplane_requests_total Requests that were answered.",
            "# TYPE microplane_requests_total counter",
        ]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'microplane_requests_total{{path="{path}",status="{status}"}} {count}')
        tell("refused_total", "counter", "Requests for which the queue had no room.", self.refused)
        tell("cancelled_total", "counter", "Answers whose client went away.", self.cancelled)
        tell("failed_total", "counter", "Answers that ended with an error of the server.", self.failed)
        tell("prompt_tokens_total", "counter", "Tokens of prompts that were read.", self.prompt_tokens)
        tell("generated_tokens_total", "counter", "Tokens that were written.", self.tokens)
        tell("steps_total", "counter", "Steps in which a batch wrote a token of each answer.", self.steps)
        tell("step_seconds_total", "counter", "Seconds that these steps took.", self.seconds)
        tell("answers_running", "gauge", "Answers that are being written.", running)
        tell("requests_waiting", "gauge", "Requests in the queue.", waiting)
        tell("models", "gauge", "Models and adapters that are served.", models)
        return "\n".join(lines) + "\n"
