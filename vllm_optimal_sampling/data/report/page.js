// A tip beside the token that is pointed at or tapped. Without scripts the browser's own tip (title) says the same.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const show = (event) => {
    const target = event.target.closest?.("[title], [data-said]");
    if (!target || target.namespaceURI !== "http://www.w3.org/1999/xhtml") {
      tip.hidden = true;
      return;
    }
    if (target.hasAttribute("title")) {
      target.dataset.said = target.title;
      target.removeAttribute("title");
    }
    tip.textContent = target.dataset.said;
    tip.hidden = false;
    const box = target.getClientRects()[0];
    const left = Math.min(Math.max(8, box.left), document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? box.bottom + 6 : box.top - 6 - tip.offsetHeight}px`;
  };
  document.addEventListener("pointerover", show);
  document.addEventListener("click", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
