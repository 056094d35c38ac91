// The page keeps a video element when its clip changes, and the browser would play on with the old file.
new MutationObserver((changes) => changes.forEach(({ target }) => target.load?.())).observe(element, {
  subtree: true,
  attributeFilter: ["data-clip"],
});
