// What the page does by itself: Ctrl+Enter, light and dark, which picture is chosen, pictures that are dropped or pasted
// anywhere, which go into the button "Open a picture", and a line when the server is gone or another one is there.
(() => {
  const has = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const keeps = (target) => target instanceof Element && target.closest(".takes-pictures");

  const stored = localStorage.getItem("codebrush-theme");
  const paintTheme = (theme) => document.body?.classList.toggle("dark", theme === "dark");
  if (stored) {
    new MutationObserver(() => {
      const theme = localStorage.getItem("codebrush-theme");
      if (document.body && document.body.classList.contains("dark") !== (theme === "dark")) paintTheme(theme);
    }).observe(document.documentElement, { attributes: true, subtree: true, attributeFilter: ["class"], childList: true });
  }

  const SAID_MILLISECONDS = 6000;
  const tell = (text) => {
    document.querySelector(".cb-told")?.remove();
    const line = document.createElement("div");
    line.className = "cb-told";
    line.setAttribute("role", "status");
    line.textContent = text;
    document.body.append(line);
    setTimeout(() => line.remove(), SAID_MILLISECONDS);
  };

  const open = (files) => {
    const pictures = [...files].filter((file) => file.type.startsWith("image/"));
    const [picture] = pictures;
    const input = document.querySelector("#header input[type=file]");
    if (!picture) tell("This is no picture: drop a PNG, a JPEG or another picture.");
    if (!picture || !input) return false;
    if (pictures.length > 1) tell(`One picture is opened at a time: ${picture.name}.`);
    const list = new DataTransfer();
    list.items.add(picture);
    input.files = list.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };

  addEventListener("dragover", (event) => {
    if (!has(event) || keeps(event.target)) return;
    event.preventDefault();
    document.body.classList.add("cb-dragging");
  }, true);
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("cb-dragging");
  }, true);
  addEventListener("drop", (event) => {
    document.body.classList.remove("cb-dragging");
    if (!has(event) || keeps(event.target)) return;
    event.preventDefault();
    event.stopPropagation();
    open(event.dataTransfer.files);
  }, true);
  const writes = (target) => target instanceof Element && target.closest("textarea, input, [contenteditable=true]");
  addEventListener("paste", (event) => {
    if (keeps(event.target) || !event.clipboardData?.files.length) return;
    if (writes(event.target) && event.clipboardData.getData("text/plain").trim()) return;  // the text is meant
    if (open(event.clipboardData.files)) event.preventDefault();
  }, true);

  addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    const go = [...document.querySelectorAll("button.cb-go")].find((button) => button.offsetParent !== null);
    if (!go) return;
    event.preventDefault();
    event.stopPropagation();
    document.activeElement?.dispatchEvent(new Event("change", { bubbles: true }));
    if (!go.disabled) setTimeout(() => go.click(), 50);
  }, true);

  addEventListener("click", (event) => {
    if (!(event.target instanceof Element)) return;
    if (event.target.closest("[data-theme-toggle]")) {
      const theme = document.body.classList.contains("dark") ? "light" : "dark";
      localStorage.setItem("codebrush-theme", theme);
      paintTheme(theme);
    }
    const go = event.target.closest("button.cb-go");
    if (go) {  // the results may be below the form, or above the part of it that is seen
      const status = [...document.querySelectorAll(".cb-status")].find((each) => each.offsetParent !== null);
      const top = status?.getBoundingClientRect().top;
      if (top < 0 || top > innerHeight - 200) status.scrollIntoView({ behavior: "smooth", block: "start" });
    }
    const picture = event.target.closest("[data-action=choose]");
    picture?.parentElement.querySelectorAll("[data-action=choose]").forEach((each) => {
      each.setAttribute("aria-pressed", String(each === picture));
    });
  }, true);

  const gone = "The server does not answer: it was stopped, or cannot be reached. What it has painted is kept.";
  const another = "The server was started again: reload the page to go on. What was asked of it before stands in Queue.";
  const LOOK_MILLISECONDS = 5000;
  let started = null;
  const say = (text) => {
    const line = document.getElementById("cb-server");
    if ((line?.firstChild.textContent ?? "") === text) return;
    line?.remove();
    if (!text) return;
    const said = document.createElement("div");
    said.id = "cb-server";
    said.setAttribute("role", "alert");
    said.append(document.createElement("span"));
    said.firstChild.textContent = text;
    if (text === another) {
      const reload = document.createElement("button");
      reload.textContent = "Reload";
      reload.className = "cb-small";
      reload.addEventListener("click", () => location.reload());
      said.append(reload);
    }
    document.body.prepend(said);
  };
  let looking = false;
  const look = async () => {
    if (document.hidden || looking) return;
    looking = true;
    try {
      const asked = { cache: "no-store", signal: AbortSignal.timeout(2 * LOOK_MILLISECONDS) };
      const health = await (await fetch("/health", asked)).json();
      started ??= health.started;
      say(health.started === started ? "" : another);
    } catch {
      say(gone);
    } finally {
      looking = false;
    }
  };
  addEventListener("load", look);
  addEventListener("focus", look);
  setInterval(look, LOOK_MILLISECONDS);
})();
