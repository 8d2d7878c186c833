"""How many tokens a request to a language model may take, told from its body before the model has run.

Read are the bodies of OpenAI's chat completions, completions and responses, Anthropic's messages, Gemini's
generateContent, and whatever else has a ``prompt`` or an ``input``. An estimate is for reserving tokens: it had better
be too high, and what is observed afterwards corrects it. So of several limits the largest counts, and a limit that
makes no sense (negative, not a number, text) counts as none given. It is not a bound on what comes back: nothing says
that the application heeds the field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from abuseguard.tokens._json import MAX_TOKENS, parse_json, text_tokens, token_count

#: What an image, a sound or a file counts: 1024 x 1024 pixels are 765 tokens to one provider, 1398 to another.
MEDIA_TOKENS: Final = 1024

_PROMPTS: Final = ("messages", "prompt", "input", "contents")
_INSTRUCTIONS: Final = ("system", "instructions", "systemInstruction", "system_instruction", "suffix")
_SCHEMAS: Final = ("tools", "functions", "response_format")
_OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "maxOutputTokens")
_CHOICES: Final = ("n", "best_of", "candidateCount", "candidate_count")
_MAX_CHOICES: Final = 128

# What a part's "type" says when its content is not text, and where Gemini keeps such content.
_MEDIA_TYPES: Final = frozenset(
    (
        *("image", "image_url", "input_image", "video", "video_url", "audio", "input_audio", "file", "input_file"),
        *("base64", "url"),  # the sources of Anthropic's documents, which may be text as well
    )
)
_MEDIA_KEYS: Final = frozenset(("inlineData", "inline_data", "fileData", "file_data"))
_LABELS: Final = frozenset(("role", "type"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a request may take.

    Args:
        input_tokens: tokens that the model reads.
        output_tokens: tokens that it may write.
        stands: whether it is charged as it is where the response reports nothing, instead of what is counted: whoever
            estimates by a function of their own knows better than a count of bytes.
    """

    input_tokens: int
    output_tokens: int
    stands: bool = field(default=False, repr=False)

    @property
    def total_tokens(self) -> int:
        return min(MAX_TOKENS, self.input_tokens + self.output_tokens)


def estimate_tokens(
    body: bytes, *, default_output_tokens: int = 1024, max_output_tokens: int = 1_000_000
) -> Estimate | None:
    """What a request with this body may take; None if it does not look like a request to a language model.

    Input is the text of messages, system prompt and tool schemas at four bytes a token, and ``MEDIA_TOKENS`` for each
    image or file. Output is the request's own limit, times the number of answers and of prompts. Never raises,
    whatever the body is.

    Args:
        body: the whole body; see ``estimate_from_length`` for a part of one.
        default_output_tokens: the output of a request that sets no limit.
        max_output_tokens: the most that one answer can have, whatever limit the request sets.

    >>> estimate_tokens(b'{"messages": [{"role": "user", "content": "Is the sky blue?"}], "max_tokens": 200, "n": 2}')
    Estimate(input_tokens=4, output_tokens=400)
    >>> print(estimate_tokens(b'{"name": "Ada"}'))
    None
    """
    try:
        request = parse_json(body)
    except ValueError:
        return None
    except RecursionError:
        # The application may get further with it than we do.
        return estimate_from_length(len(body), default_output_tokens=default_output_tokens)
    if not isinstance(request, dict):
        return None
    holders = [request, request.get("generationConfig"), request.get("generation_config")]
    limit = _largest(holders, _OUTPUT_LIMITS)
    prompts = [request[name] for name in _PROMPTS if isinstance(request.get(name), str | list | dict)]
    if prompts:
        prompts += [request[name] for name in _INSTRUCTIONS if name in request]
        input_tokens = _tokens_in(prompts) + _tokens_in(
            [request[name] for name in _SCHEMAS if name in request], keys=True
        )
    elif limit is not None:
        input_tokens = _tokens_in([request])
    else:
        return None
    answers = min(_largest(holders, _CHOICES) or 1, _MAX_CHOICES) * _number_of_prompts(request.get("prompt"))
    output_tokens = min(default_output_tokens if limit is None else limit, max_output_tokens) * answers
    return Estimate(
        input_tokens=min(MAX_TOKENS, input_tokens),
        output_tokens=min(MAX_TOKENS, output_tokens),
    )


def estimate_from_length(content_length: int, *, default_output_tokens: int = 1024) -> Estimate:
    """What a request may take whose body was not read as a whole, told from its length in bytes.

    >>> estimate_from_length(1_000_000)
    Estimate(input_tokens=250000, output_tokens=1024)
    """
    return Estimate(input_tokens=text_tokens(content_length), output_tokens=default_output_tokens)


def _largest(holders: list[Any], names: tuple[str, ...]) -> int | None:
    counts = [
        token_count(holder[name], least=1)
        for holder in holders
        if isinstance(holder, dict)
        for name in names
        if name in holder
    ]
    return max((count for count in counts if count is not None), default=None)


def _number_of_prompts(prompt: object) -> int:
    """How many prompts a completion request has: a list of texts or of token lists is one for each item."""
    if not isinstance(prompt, list):
        return 1
    return max(1, sum(isinstance(item, str | list) for item in prompt))


def _tokens_in(values: list[Any], *, keys: bool = False) -> int:
    """The tokens of all texts inside; of objects' keys too where the model reads them, as in a schema."""
    text_bytes = media = 0
    stack = values
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            text_bytes += len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, list):
            stack += item
        elif isinstance(item, dict):
            if keys:
                stack += item.keys()
                stack += item.values()
            elif _is_media(item):
                media += 1
            else:
                stack += [value for key, value in item.items() if key not in _LABELS]
        elif isinstance(item, int | float):
            text_bytes += 4  # a prompt may be a list of token numbers
    return text_tokens(text_bytes) + media * MEDIA_TOKENS


def _is_media(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    return (isinstance(kind, str) and kind in _MEDIA_TYPES) or not _MEDIA_KEYS.isdisjoint(part)
