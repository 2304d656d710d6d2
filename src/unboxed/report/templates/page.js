"use strict";
(function () {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  function remember(theme) { try { localStorage.setItem("unboxed-theme", theme); } catch (error) { /* a file may not */ } }
  function recall() { try { return localStorage.getItem("unboxed-theme"); } catch (error) { return null; } }
  const before = recall();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remember(root.dataset.theme);
  });

  function follow(k) {
    for (const group of document.querySelectorAll(".per-example")) {
      const variants = [...group.children], chosen = variants[k] || variants[0];
      for (const one of variants) one.hidden = one !== chosen;
    }
    for (const button of document.querySelectorAll(".chooser button")) button.setAttribute("aria-pressed", String(Number(button.dataset.choose) === k));
  }
  for (const button of document.querySelectorAll(".chooser button")) button.addEventListener("click", () => follow(Number(button.dataset.choose)));

  for (const morph of document.querySelectorAll(".morph")) {
    const data = JSON.parse(morph.querySelector("script").textContent);
    const image = morph.querySelector(".stage > img");
    const range = morph.querySelector("input");
    const rows = [...morph.querySelectorAll(".prob")];
    const step = morph.querySelector(".step");
    const play = morph.querySelector(".play");
    let timer = 0;
    function show() {
      const t = Number(range.value);
      image.src = data.frames[t];
      image.alt = data.alts[t];
      step.textContent = "step " + data.steps[t];
      range.setAttribute("aria-valuetext", step.textContent);
      rows.forEach((row, k) => {
        const p = data.probs[t][k];
        row.querySelector(".fill").style.width = 100 * p + "%";
        row.querySelector("output").textContent = p < 0.005 ? "<0.01" : p >= 0.995 ? ">0.99" : p.toFixed(2);
      });
    }
    function stop() { clearInterval(timer); timer = 0; play.textContent = "Play"; }
    function tick() {
      if (Number(range.value) >= Number(range.max)) return stop();
      range.value = Number(range.value) + 1;
      show();
    }
    range.addEventListener("input", () => { stop(); show(); });
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (range.value === range.max) { range.value = 0; show(); }
      play.textContent = "Pause";
      timer = setInterval(tick, 110);
    });
  }

  const folds = [...document.querySelectorAll("details.section")], all = document.getElementById("all");
  const label = () => { if (all) all.textContent = folds.every((d) => d.open) ? "Close all sections" : "Open all sections"; };
  function reveal() {  // what the address names is open, with all folds around it
    const named = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!named) return;
    const closed = [named.querySelector(":scope > details.section")];
    for (let e = named; e; e = e.parentElement) if (e.localName === "details") closed.push(e);
    for (const fold of closed) if (fold) fold.open = true;
    named.scrollIntoView();
  }
  if (all) all.addEventListener("click", () => { const open = !folds.every((d) => d.open); for (const d of folds) d.open = open; });
  for (const d of folds) d.addEventListener("toggle", label);
  addEventListener("hashchange", reveal);
  label();
  reveal();

  const menu = document.getElementById("menu"), contents = document.getElementById("contents");
  if (!menu) return;
  function unfold(open) { contents.classList.toggle("open", open); menu.setAttribute("aria-expanded", String(open)); }
  menu.addEventListener("click", () => unfold(!contents.classList.contains("open")));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && contents.classList.contains("open")) { unfold(false); menu.focus(); } });
  contents.addEventListener("click", (event) => {
    if (!event.target.hash) return;
    unfold(false);
    if (event.target.hash === location.hash) reveal();
  });

  const links = new Map([...contents.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
  const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  function mark() {  // the last heading above the upper third of the window is the current one
    const above = places.filter((place) => place.getBoundingClientRect().top < 0.3 * innerHeight);
    for (const a of links.values()) a.removeAttribute("aria-current");
    const current = above.length && links.get(above[above.length - 1].id);
    if (!current) return;
    current.setAttribute("aria-current", "true");
    const box = current.getBoundingClientRect(), frame = contents.getBoundingClientRect();
    if (box.top < frame.top || box.bottom > frame.bottom) contents.scrollTop += box.top - frame.top - frame.height / 2;
  }
  let waiting = 0;
  const later = () => { if (!waiting) waiting = requestAnimationFrame(() => { waiting = 0; mark(); }); };
  addEventListener("scroll", later, { passive: true });
  addEventListener("resize", later);
  mark();
})();
