"""The page in Gradio: search, and one video with questions and regions."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from alpro.inference.search import Found, Hit, neighbors
from alpro.pipeline.serving.answers import MAX_TEXT, Answers
from alpro.pipeline.serving.media import CLIPS
from alpro.pipeline.serving.mistakes import Mistake
from alpro.shards.schema import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

HERE = Path(__file__).parent
T = TypeVar("T")
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
STYLE = (HERE / "page.css").read_text("utf-8")
NO_CLIP = '<p class="empty">No video yet: upload one, or choose a clip of the search results.</p>'
FRAME = """{{#if value.src}}<div class="frame"><img src="{{value.src}}" alt="The middle frame of the video"
draggable="false"><div class="box" style="left: {{value.left}}%; top: {{value.top}}%; width: {{value.width}}%;
height: {{value.height}}%"></div></div>{{/if}}"""
GO: dict[str, Any] = {"scale": 0, "min_width": 100}
MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}


def build(answers: Answers) -> gr.Blocks:
    """The page, with the parts that its models can do."""
    models = answers.models
    with gr.Blocks(title="ALPRO", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# ALPRO: search videos, ask them, name what they show")
        chosen = gr.State("")
        with gr.Tabs() as tabs:
            results = None
            if models.search:
                with gr.Tab("Search", id="search"):
                    results = add_search(answers)
            with gr.Tab("One video", id="video"):
                add_video(answers, chosen, tabs, results)
    page.queue(max_size=32)
    return page


def add_search(answers: Answers) -> gr.HTML:
    """The search. Returns the results, whose event `select` chooses a clip."""
    assert answers.models.index
    with gr.Row(elem_classes="line"):
        text = gr.Textbox(
            label=f"What the videos should show ({len(answers.models.index):,} clips)",
            placeholder="a dog runs to the left",
            max_length=MAX_TEXT,
            scale=5,
        )
        button = gr.Button("Search", variant="primary", **GO)
    about = gr.Markdown()
    results = gr.HTML("", js_on_load=script("videos.js") + script("results.js"), elem_id="results")

    def run(words: str) -> tuple[str, str]:
        try:
            found = answers.turns.call(lambda: answers.search(words))
        except Mistake as mistake:
            return message(mistake), ""
        return summary(found), cards(answers, found)

    gr.on([text.submit, button.click], run, text, [about, results], **MODEL)
    return results


def add_video(answers: Answers, chosen: gr.State, tabs: gr.Tabs, results: gr.HTML | None) -> None:
    """The tab of one video: upload, player, questions, regions."""
    models = answers.models
    with gr.Row():
        with gr.Column():
            types = sorted(VIDEO_EXTENSIONS | IMAGE_EXTENSIONS)
            upload = gr.File(label="Upload a video or an image", file_types=types, height=120, elem_id="upload")
            about = gr.Markdown(elem_id="problem")
            player = gr.HTML(NO_CLIP, js_on_load=script("videos.js"), elem_id="player", elem_classes="player")
            clear, outputs = add_ask(answers, chosen) if models.ask else ((), [])
        with gr.Column(visible=bool(models.naming)):
            frame_value, frame_outputs = add_entities(answers, chosen) if models.naming else (None, [])

    def show(key: str) -> tuple[Any, ...]:
        frames = (*frame_value(key),) if frame_value else ()
        return (key, None, "", player_of(answers, key), *clear, *frames)

    shown = [chosen, upload, about, player, *outputs, *frame_outputs]

    def uploaded(file: str) -> tuple[Any, ...]:
        try:
            return show(answers.turns.call(lambda: answers.upload(file)))
        except Mistake as mistake:
            return ("", None, message(mistake), NO_CLIP, *clear, *(frame_value("") if frame_value else ()))

    upload.upload(uploaded, upload, shown, **MODEL)

    def picked(event: gr.EventData) -> tuple[Any, ...]:
        try:
            return (*show(answers.pick(event._data.get("clip"))), gr.Tabs(selected="video"))
        except (Mistake, AttributeError) as mistake:
            return ("", None, message(mistake), NO_CLIP, *clear, *(frame_value("") if frame_value else ()), gr.skip())

    if results:
        results.select(picked, None, [*shown, tabs], **MODEL)


def add_ask(answers: Answers, chosen: gr.State) -> tuple[tuple[Any, ...], list[Any]]:
    """Questions. Returns what clears the answers for another video, and the components that it clears."""
    gr.Markdown("### Ask a question\nAnswers come from the list of the model's training.")
    with gr.Row(elem_classes="line"):
        question = gr.Textbox(label="Question", placeholder="what color is the ball?", max_length=MAX_TEXT, scale=4)
        button = gr.Button("Ask", variant="primary", **GO)
    problem = gr.Markdown()
    best = gr.Label(label="Answers", show_heading=False, elem_id="answers")

    def run(key: str, words: str) -> tuple[str, Any]:
        return ranked(answers, lambda: answers.ask(key, words))

    gr.on([question.submit, button.click], run, [chosen, question], [problem, best], **MODEL)
    return ("", None), [problem, best]


def add_entities(answers: Answers, chosen: gr.State) -> tuple[Callable[[str], tuple[Any, ...]], list[Any]]:
    """Regions. Returns what shows another video, and the components that it shows it in."""
    gr.Markdown("### Name what a region shows\nDrag a box on the frame. A click takes the whole frame.")
    frame = gr.HTML(frame_of(""), html_template=FRAME, js_on_load=script("box.js"), elem_id="frame")
    with gr.Row(elem_classes="line"):
        box = gr.Textbox(label="Region: left, top, width, height (0 to 1)", placeholder="0.5, 0, 0.5, 1", scale=4)
        button = gr.Button("Name", variant="primary", **GO)
    text = gr.Textbox(
        label="Caption for the pre-trained model, if any", max_length=MAX_TEXT, visible=bool(answers.models.pretrained)
    )
    problem = gr.Markdown()
    models = answers.models.naming
    entities = [
        gr.Label(label=who, show_heading=len(models) > 1, elem_id="entities" if i == 0 else "model-entities")
        for i, who in enumerate(models)
    ]
    outputs = [frame, box, problem, *entities]

    def run(key: str, region: str, caption: str) -> tuple[Any, ...]:
        problem, named = ranked(answers, lambda: answers.entities(key, region, caption))
        shown: list[Any] = named or [None] * len(models)
        return frame_of(key, region if named else ""), region, problem, *shown

    def dragged(key: str, caption: str, event: gr.EventData) -> tuple[Any, ...]:
        data = event._data.get("box") if isinstance(event._data, dict) else None
        numbers = data if isinstance(data, list) and all(isinstance(part, int | float) for part in data) else []
        return run(key, ", ".join(f"{part:.2f}" for part in numbers), caption)

    gr.on([box.submit, text.submit, button.click], run, [chosen, box, text], outputs, **MODEL)
    frame.select(dragged, [chosen, text], outputs, **MODEL)
    return lambda key: (frame_of(key), "", "", *[None] * len(models)), outputs


def ranked(answers: Answers, compute: Callable[[], T]) -> tuple[str, T | None]:
    """A message, and words with their probabilities."""
    try:
        return "", answers.turns.call(compute)
    except Mistake as mistake:
        return message(mistake), None


def message(mistake: Exception) -> str:
    """A message as Markdown, in which the words of a person mark up nothing."""
    return f"⚠ {escape(str(mistake)).replace('`', '')}"


def script(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def summary(found: Found) -> str:
    times = sum(found.seconds.values())
    if found.note:
        return f"Note: {found.note}."
    matched = f", the best {found.matched} by matching" if found.matched else ""
    return f"{found.clips:,} clips ranked by similarity{matched}, in {times:.1f} s"


def cards(answers: Answers, found: Found) -> str:
    """The results as HTML: clips that play, with their scores."""
    return f'<div class="results">{"".join(card(answers, rank, hit) for rank, hit in enumerate(found.hits, 1))}</div>'


def card(answers: Answers, rank: int, hit: Hit) -> str:
    key = f"{CLIPS}/{hit.number}"
    name = escape(answers.media.name(key))
    scores = score("similarity", hit.similarity)
    if hit.match is not None:
        scores += score("match", hit.match)
    note = "".join(f'<div class="note">{escape(line)}</div>' for line in (hit.note, neighbors(hit)) if line)
    return (
        f'<div class="card">{clip(answers, key, "autoplay muted loop")}<div class="about">'
        f'<div class="name">{rank}. {name}</div><dl>{scores}</dl>{note}'
        f'<button type="button" data-number="{hit.number}" aria-label="Open {name}">Open</button></div></div>'
    )


def score(name: str, value: float) -> str:
    width = 100 * min(1.0, max(0.0, value))
    return f'<dt>{name}</dt><div class="bar"><i style="width: {width:.0f}%"></i></div><dd>{value:.3f}</dd>'


def player_of(answers: Answers, key: str) -> str:
    return f"{clip(answers, key, 'autoplay muted loop')}<p>{escape(answers.media.name(key))}</p>"


def clip(answers: Answers, key: str, options: str) -> str:
    """A video, of which the browser takes the first source that it can play; or a picture."""
    name = escape(answers.media.name(key))
    if not answers.media.plays(key):
        return f'<img src="/media/{key}/preview" alt="{name}">'
    original = answers.media.original(key)
    first = f'<source src="/media/{key}{answers.media.fragment(key)}" type="{original[1]}">' if original else ""
    return (
        f'<video controls playsinline {options} data-clip="{key}" aria-label="{name}">{first}'
        f'<source src="/media/{key}/preview" type="video/webm"></video>'
    )


def frame_of(key: str, region: str = "") -> dict[str, Any]:
    """The values of FRAME: a clip's frame with a box in percent."""
    left, top, width, height = (100 * float(part) for part in (region or "0, 0, 1, 1").split(","))
    src = f"/media/{key}/frame" if key else ""
    return {"src": src, "left": left, "top": top, "width": width, "height": height}
