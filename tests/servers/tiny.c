/* The smallest real MCP server over stdio: one tool, `hello`. Linked statically, it is all that an image needs.
   With an argument it goes on when its stdin ends. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argv;
    char *line = NULL;
    size_t room = 0;
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    while (getline(&line, &room, stdin) > 0) {
        char *id = strstr(line, "\"id\":");
        if (!id) continue;
        long n = atol(id + 5);
        if (strstr(line, "\"initialize\""))
            printf("{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"protocolVersion\":\"2025-11-25\",\"capabilities\":"
                   "{\"tools\":{}},\"serverInfo\":{\"name\":\"tiny\",\"version\":\"1\"}}}\n", n);
        else if (strstr(line, "\"tools/list\""))
            printf("{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"tools\":[{\"name\":\"hello\",\"inputSchema\":"
                   "{\"type\":\"object\"}}]}}\n", n);
        else if (strstr(line, "\"tools/call\""))
            printf("{\"jsonrpc\":\"2.0\",\"id\":%ld,\"result\":{\"content\":[{\"type\":\"text\",\"text\":"
                   "\"hello from a container\"}]}}\n", n);
        else
            printf("{\"jsonrpc\":\"2.0\",\"id\":%ld,\"error\":{\"code\":-32601,\"message\":\"unknown\"}}\n", n);
    }
    while (argc > 1) pause();
    return 0;
}
