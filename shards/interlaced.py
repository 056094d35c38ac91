"""Frames of interlaced video, as the decoder and exported processors scale them."""

from fractions import Fraction
from typing import Any


def as_progressive(frame: Any) -> Any:
    """The frame, marked as progressive.

    PyAV scales the two fields of an interlaced frame apart, so that edges of what moves become
    combs of single lines. The ffmpeg binary and other decoders scale the frame as it is.
    """
    if not frame.interlaced_frame:
        return frame
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1  # threads of its own would not survive a fork
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1),  # not every frame has one; none is read
    )
    marked = graph.add("setfield", "prog")
    sink = graph.add("buffersink")
    source.link_to(marked)
    marked.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.pull()
