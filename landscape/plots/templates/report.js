"use strict";
// Buttons that copy a command.
(function () {
  function select(code) {
    var range = document.createRange(), selection = window.getSelection();
    range.selectNodeContents(code);
    selection.removeAllRanges();
    selection.addRange(range);
  }

  Array.prototype.forEach.call(document.querySelectorAll(".command"), function (box) {
    var button = box.querySelector("button"), code = box.querySelector("code");
    button.hidden = false;
    function say(text) {
      button.textContent = text;
      setTimeout(function () { button.textContent = "Copy"; }, 2000);
    }
    button.addEventListener("click", function () {
      function otherwise() {
        select(code);
        say(document.execCommand("copy") ? "Copied" : "Selected");
      }
      if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(code.textContent).then(function () { say("Copied"); }, otherwise);
      else otherwise();
    });
  });
})();
