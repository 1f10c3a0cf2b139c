// Text that does not stand out from its ground: WCAG 2.2, 1.4.3, by its formula for relative luminance.
() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return text.startsWith("color(") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
  const ground = (node) => {
    if (!node) return [255, 255, 255, 1];
    const own = parse(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(node.parentElement));
  };
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);

  // Not asked of what is switched off (1.4.3: incidental), nor of what only a screen reader meets.
  const counts = (node) =>
    node.checkVisibility({ visibilityProperty: true }) && !node.disabled && !node.closest(".unseen, option, script");
  const faint = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    const text = walk.currentNode.textContent.trim();
    if (!text || !counts(node)) continue;
    const style = getComputedStyle(node);
    const below = ground(node);
    const [high, low] = [luminance(over(parse(style.color), below)), luminance(below)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    seen += 1;
    if ((high + 0.05) / (low + 0.05) < wanted) faint.push([text.slice(0, 40), style.color, below.join()]);
  }
  return { seen, faint };
}
