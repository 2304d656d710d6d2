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
  const label = () => { all.textContent = folds.every((d) => d.open) ? "Close all sections" : "Open all sections"; };
  function reveal() {  // the section of the address is open
    const part = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    const fold = part && part.closest(".part") && part.closest(".part").querySelector("details.section");
    if (fold && !fold.open) { fold.open = true; part.scrollIntoView(); }
  }
  all.addEventListener("click", () => { const open = !folds.every((d) => d.open); for (const d of folds) d.open = open; });
  for (const d of folds) d.addEventListener("toggle", label);
  addEventListener("hashchange", reveal);
  addEventListener("beforeprint", () => { for (const d of folds) d.open = true; });
  document.querySelector(".bar nav").addEventListener("click", (event) => { if (event.target.hash === location.hash) reveal(); });
  label();
  reveal();

  const bar = document.querySelector(".bar");
  const links = new Map([...bar.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const parts = [...document.querySelectorAll(".part[id]")];
  let seen, height = 0;
  function mark() {  // the first section below the bar is the current one
    const boxes = parts.map((part) => part.getBoundingClientRect());
    const current = boxes.findIndex((box) => box.bottom > height + 8 && box.top < 0.3 * innerHeight);
    for (const a of links.values()) a.removeAttribute("aria-current");
    if (current >= 0) links.get(parts[current].id).setAttribute("aria-current", "true");
  }
  new ResizeObserver(() => {  // the more links wrap, the higher is the bar: sections stop, and count as current, below it
    height = Math.ceil(bar.getBoundingClientRect().height);
    root.style.setProperty("--bar", height + "px");
    if (seen) seen.disconnect();
    seen = new IntersectionObserver(mark, { rootMargin: `-${height + 8}px 0px -70% 0px` });
    for (const part of parts) seen.observe(part);
  }).observe(bar);
})();
