// The page's own behaviour: light and dark, what is folded away, keys, scrolling. No network.
window.expertflow = (() => {
  const stored = (name) => localStorage.getItem("expertflow-" + name);
  const store = (name, value) => localStorage.setItem("expertflow-" + name, value);
  const byId = (id) => document.getElementById(id);

  // -- light and dark: the person's choice wins over the system's, also when Gradio sets its own class
  const wantsDark = () => {
    const choice = stored("theme");
    return choice ? choice === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const applyTheme = () => {
    const dark = wantsDark();
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    if (document.body.classList.contains("dark") !== dark) document.body.classList.toggle("dark", dark);
  };

  // -- the side columns: open on a wide window, folded on a narrow one, remembered while the width allows
  const narrow = { chats: "(max-width: 1099px)", side: "(max-width: 859px)" };
  const isOpen = (name) => document.body.classList.contains("open-" + name);
  const setOpen = (name, open) => {
    document.body.classList.toggle("open-" + name, open);
    const button = byId("toggle-" + name);
    if (button) button.setAttribute("aria-expanded", String(open));
  };
  const fold = (name) => setOpen(name, !matchMedia(narrow[name]).matches && stored(name) !== "closed");
  const toggle = (name) => {
    const open = !isOpen(name);
    if (!matchMedia(narrow[name]).matches) store(name, open ? "open" : "closed");
    else if (open) setOpen(name === "chats" ? "side" : "chats", isOpenWide(name === "chats" ? "side" : "chats"));
    setOpen(name, open);
  };
  const isOpenWide = (name) => isOpen(name) && !matchMedia(narrow[name]).matches;

  // -- the address keeps the chat, so that a reload shows it again
  const chatAtStart = new URLSearchParams(location.search).get("chat") || "";
  const chatInAddress = () => chatAtStart;
  let arrived = false;
  const keepChatInAddress = (id) => {
    if (!arrived && !id && chatAtStart) return; // the page has not been told its chat yet
    arrived = true;
    const address = new URL(location.href);
    if (id) address.searchParams.set("chat", id);
    else address.searchParams.delete("chat");
    history.replaceState(null, "", address);
    atEnd = true;
  };

  // on a phone the keyboard would cover half of the page at once
  const focusMessage = () => {
    if (!matchMedia(narrow.side).matches) document.querySelector("#message textarea")?.focus();
  };

  // -- keys
  const visibleButton = (id) => {
    const found = byId(id);
    return found && found.offsetParent !== null ? found : null;
  };
  const onKey = (event) => {
    if (event.key === "Escape") {
      const stop = visibleButton("stop");
      if (stop) stop.click();
      return;
    }
    if (!(event.ctrlKey || event.metaKey)) return;
    if (event.shiftKey && event.key.toLowerCase() === "o") byId("new-chat")?.click();
    else if (!event.shiftKey && event.key.toLowerCase() === "b") toggle("chats");
    else return;
    event.preventDefault();
  };
  // Gradio's slider reports a release for the mouse only
  const onKeyUp = (event) => {
    if (event.target.matches?.("#slider input[type=range]") && event.key.startsWith("Arrow"))
      event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  };

  // -- the chat stays at its end while the answer grows, unless the person scrolled up
  let atEnd = true;
  const followEnd = () => {
    const scroll = byId("scroll");
    if (!scroll) return false;
    scroll.addEventListener("scroll", () => {
      atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
    });
    const toEnd = () => { if (atEnd) scroll.scrollTop = scroll.scrollHeight; };
    new MutationObserver(toEnd).observe(scroll, { childList: true, subtree: true, characterData: true });
    new ResizeObserver(toEnd).observe(scroll);
    byId("send")?.addEventListener("click", () => { atEnd = true; });
    return true;
  };

  const onClick = (event) => {
    const button = event.target.closest?.(".tool");
    if (button?.id === "toggle-dark") {
      store("theme", wantsDark() ? "light" : "dark");
      applyTheme();
    } else if (button) toggle(button.id.slice("toggle-".length));
    const chosen = event.target.closest?.("#chat-list label, #new-chat");
    if (chosen && matchMedia(narrow.chats).matches) setOpen("chats", false);
  };

  const start = () => {
    applyTheme();
    new MutationObserver(applyTheme).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
    for (const name of ["chats", "side"]) {
      fold(name);
      matchMedia(narrow[name]).addEventListener("change", () => fold(name));
    }
    document.addEventListener("keydown", onKey);
    document.addEventListener("keyup", onKeyUp);
    document.addEventListener("click", onClick);
    const waiting = setInterval(() => { if (followEnd()) clearInterval(waiting); }, 100);
  };
  if (document.body) start();
  else document.addEventListener("DOMContentLoaded", start);
  return { chatInAddress, focusMessage, keepChatInAddress };
})();
