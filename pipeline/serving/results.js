// The button of a search result chooses its clip.
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-number]");
  if (button) trigger("select", { clip: Number(button.dataset.number) });
});
