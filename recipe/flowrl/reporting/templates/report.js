// Shows the values under the pointer. Text goes in through textContent only: labels hold names from the data.
"use strict";
const element = (tag, parent, className = "") => {
  const node = parent.appendChild(document.createElement(tag));
  node.className = className;
  return node;
};

for (const figure of document.querySelectorAll("figure")) {
  const plot = figure.querySelector(".plot");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const [left, top, width, height] = data.box;
  const [low, high] = data.xlim;
  const cursor = element("div", plot, "cursor");
  const readout = element("div", plot, "readout");
  cursor.hidden = readout.hidden = true;
  cursor.style.top = `${100 * top}%`;
  cursor.style.height = `${100 * height}%`;

  const nearest = (x) => {
    let best = 0;
    data.x.forEach((value, index) => {
      if (Math.abs(value - x) < Math.abs(data.x[best] - x)) best = index;
    });
    return best;
  };

  plot.addEventListener("pointermove", (event) => {
    const area = plot.getBoundingClientRect();
    const across = ((event.clientX - area.left) / area.width - left) / width;
    cursor.hidden = readout.hidden = across < -0.02 || across > 1.02;
    if (readout.hidden) return;
    const index = nearest(low + across * (high - low));
    const place = left + (width * (data.x[index] - low)) / (high - low);
    cursor.style.left = `${100 * place}%`;
    readout.replaceChildren();
    element("strong", readout).textContent = data.titles[index];
    for (const series of data.series) {
      if (series.values[index] === null) continue;
      const row = element("div", readout);
      element("i", row, "box").style.setProperty("--ink", `var(--${series.color})`);
      element("span", row).textContent = series.label;
      element("span", row).textContent = series.values[index];
    }
    const x = place * area.width;
    const flip = x + readout.offsetWidth + 24 > area.width;
    readout.style.left = `${Math.max(0, flip ? x - readout.offsetWidth - 12 : x + 12)}px`;
    readout.style.top = `${100 * top}%`;
  });
  plot.addEventListener("pointerleave", () => { cursor.hidden = readout.hidden = true; });
}
