"""Chat templates in the manner of well-known families, written for these tests."""

from __future__ import annotations

HEADERS = """\
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set opening = "" %}
{%- endif %}
{{- "[head]system[/head]\\n\\nToday: " + date_string + "\\n\\n" ~ opening ~ "[end]" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[head]' + message['role'] + '[/head]\\n\\n' + message['content'] | trim + '[end]' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[head]assistant[/head]\\n\\n' }}
{%- endif %}
"""

MARKED = """\
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string
        and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</t>' in content %}
            {%- set thought = content.split('</t>')[0].rstrip('\\n').split('<t>')[-1] %}
            {%- set content = content.split('</t>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last or loop.last %}
            {{- '<m>' + message.role + '\\n<t>\\n' + (thought | default('')) + '\\n</t>\\n' }}
        {%- else %}
            {{- '<m>' + message.role + '\\n' }}
        {%- endif %}
        {% generation %}{{- content }}{% endgeneration %}
        {{- '</m>\\n' }}
    {%- else %}
        {{- '<m>' + message.role + '\\n' + message.content + '</m>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<m>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<t></t>' }}{%- endif %}
{%- endif %}
"""

TURNS = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{% set first = messages[0]['content'] | trim + '

' %}{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}\
{% for message in rest %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception("Roles must alternate: user, assistant, user, ...") }}
    {% endif %}
    {% if (message['role'] == 'assistant') %}
        {% set role = "model" %}
    {% else %}
        {% set role = message['role'] %}
    {% endif %}
{{ '<turn>' + role + '
' }}{{ first if loop.first else '' }}{{ message['content'] | trim }}{{ '<end>
' }}
{% endfor %}
{% if add_generation_prompt %}
{{'<turn>model
'}}
{% endif %}
"""

INSTRUCTED = """\
{%- if messages[0]["role"] == "system" %}{%- set told = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}
{%- endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and told is defined %}
            {{- "[I]" + told + "\\n\\n" + message["content"] + "[/I]" }}
        {%- else %}
            {{- "[I]" + message["content"] + "[/I]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}{{ "%d of %s" % (users | length, loop_messages | map(attribute="role") | join(",")) }}
"""

MACROS = """\
{%- macro turn(role, text) -%}
{%- if text is mapping %}{{ text | tojson(indent=2) }}{% else %}<|{{ role }}|>{{ text }}{% endif %}
{%- endmacro -%}
{%- set tail = {"<a>": "é & <b>", "n": [1, 2.5, none, true]} -%}
{%- for key, value in tail | dictsort -%}{{ key }}={{ value | tojson }};{%- endfor -%}
{%- for key, value in tail.items() if key != "n" %}{{ key | e }}{{ value | upper }}{% endfor -%}
{%- for message in messages -%}
    {%- if message.role == "system" %}{% continue %}{% endif -%}
    {%- if loop.index > 6 %}{% break %}{% endif -%}
    {{- turn(message.role, message.content) -}}
    {%- if not loop.last and loop.nextitem.role == message.role %}{{ "\\n" }}{% endif -%}
{%- endfor -%}
{{- turn("tail", dict(a=1, b="x")) }}{{ messages[-1].get("name", "nobody") }}
{{- "%s" | format(messages | length) }}{{ missing }}{{ (messages | first).role | capitalize }}
"""

ALL = {
    "headers": HEADERS,
    "marked": MARKED,
    "turns": TURNS,
    "instructed": INSTRUCTED,
    "macros": MACROS,
}
